"""Pseudo-labels are the boxes that one would pick from the store by hand."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from predet.data.box_store import BoxRow, BoxStore
from predet.data.box_store_writer import BoxStoreWriter, StoreInfo
from predet.data.dataset import DetectionDataset
from predet.data.pseudo_labels import pseudo_labelled

KEYS = ["a/0.jpg", "b/0.jpg", "b/1.jpg", "c.jpg"]
CLASSES = ("cat", "dog", "bird")


def images(keys: list[str] | None = None, size: tuple[int, int] = (0, 0)) -> DetectionDataset:
    keys = KEYS if keys is None else keys
    return DetectionDataset(
        name="photos",
        root="/images",
        class_names=[],
        category_ids=[],
        keys=keys,
        image_ids=[100 + i for i in range(len(keys))],
        heights=[size[0]] * len(keys),
        widths=[size[1]] * len(keys),
        offsets=[0] * (len(keys) + 1),
        boxes=[],
        classes=[],
    )


def rows() -> list[BoxRow]:
    """40, 3, 0 and 2 boxes; not sorted by score, some with equal scores."""
    rng = np.random.default_rng(0)
    made = []
    for key, count in zip(KEYS, (40, 3, 0, 2), strict=True):
        start = rng.uniform(0, 80, (count, 2))
        boxes = np.concatenate([start, start + rng.uniform(2, 20, (count, 2))], axis=1)
        scores = np.round(rng.random(count), 1)
        made.append(BoxRow(key, 100, 200, boxes, scores, rng.integers(0, 3, count)))
    made[3] = made[3]._replace(scores=np.asarray([0.05, 0.0]))
    return made


def make_store(path: Path, made: list[BoxRow] | None = None, **info: object) -> BoxStore:
    made = rows() if made is None else made
    settings = {"method": "pseudo_label", "class_names": CLASSES, "image_root": "/images", **info}
    writer = BoxStoreWriter(
        path, info=StoreInfo(**settings), keys=[row.key for row in made], shard_size=3
    )
    for shard in writer.missing_shards():
        writer.write_shard(shard, made[writer.shard_slice(shard)])
    return writer.finish()


def by_hand(row: BoxRow, top_k: int | None, threshold: float) -> list[int]:
    order = sorted(range(len(row.scores)), key=lambda i: -row.scores[i])  # stable
    return [i for i in order if row.scores[i] >= threshold][:top_k]


@pytest.mark.parametrize("top_k", [1, 2, 30, None])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.3])
def test_the_best_above_the_threshold_are_taken(
    tmp_path: Path, top_k: int | None, threshold: float
) -> None:
    store = make_store(tmp_path / "store")
    result = pseudo_labelled(images(), store=store, top_k=top_k, score_threshold=threshold)
    assert result.class_names == CLASSES
    assert result.keys() == KEYS
    assert result.image_ids.tolist() == [100, 101, 102, 103]
    for index, row in enumerate(rows()):
        taken = by_hand(row, top_k, threshold)
        record = result[index]
        np.testing.assert_array_equal(record.boxes, row.boxes.astype(np.float32)[taken])
        np.testing.assert_array_equal(record.classes, row.classes[taken])
        assert not record.iscrowd.any()
        assert (record.height, record.width) == (100, 200)


def test_defaults_are_the_papers(tmp_path: Path) -> None:
    make_store(tmp_path / "store")
    result = pseudo_labelled(images(), store=tmp_path / "store")
    assert np.diff(result.offsets).tolist() == [30, 3, 0, 2]


def test_the_stores_own_choice_is_the_default_and_may_be_overruled(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", selection={"top_k": 2, "score_threshold": 0.5})
    expected = [len(by_hand(row, 2, 0.5)) for row in rows()]
    assert np.diff(pseudo_labelled(images(), store=store).offsets).tolist() == expected
    result = pseudo_labelled(images(), store=store, top_k=None, score_threshold=0.0)
    assert np.diff(result.offsets).tolist() == [40, 3, 0, 2]


def test_order_and_choice_of_images_are_those_of_the_data_set(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    chosen = images(["c.jpg", "a/0.jpg"])
    result = pseudo_labelled(chosen, store=store)
    assert result.keys() == ["c.jpg", "a/0.jpg"]
    np.testing.assert_array_equal(result[0].boxes, rows()[3].boxes.astype(np.float32))
    assert len(result[1].boxes) == 30


@pytest.mark.parametrize(("empty", "left"), [("keep", KEYS), ("drop", ["a/0.jpg", "b/0.jpg"])])
def test_images_without_boxes_are_kept_or_dropped_and_counted(
    tmp_path: Path, empty: str, left: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store(tmp_path / "store")
    with caplog.at_level("INFO"):
        result = pseudo_labelled(images(), store=store, score_threshold=0.1, empty=empty)
    assert result.keys() == left
    word = {"keep": "kept", "drop": "dropped"}[empty]
    assert f"2 images are left without boxes and are {word}" in caplog.text


@pytest.mark.parametrize("empty", ["keep", "drop"])
def test_nothing_left_of_all_images_is_an_error(tmp_path: Path, empty: str) -> None:
    store = make_store(tmp_path / "store")
    message = r"no box of score >= 2 for any of the 4 images of .*: there is nothing to learn"
    with pytest.raises(ValueError, match=message):
        pseudo_labelled(images(), store=store, score_threshold=2, empty=empty)


def test_images_with_fewer_boxes_than_asked_for_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store(tmp_path / "store")
    few = sum(len(row.boxes) < 20 for row in rows())
    assert 0 < few < len(rows())
    with caplog.at_level("INFO"):
        pseudo_labelled(images(), store=store, top_k=20, score_threshold=0)
    assert f"at most 20: {few} images have fewer)" in caplog.text


def test_classes_can_be_reordered_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store(tmp_path / "store")
    result = pseudo_labelled(images(), store=store, top_k=None, class_names=["dog", "horse", "cat"])
    assert result.class_names == ("dog", "horse", "cat")
    expected = [
        {0: 2, 1: 0}[label]
        for row in rows()
        for label in row.classes[by_hand(row, None, 0.0)]
        if label != 2
    ]
    assert result.classes.tolist() == expected
    assert "boxes of 1 classes" in caplog.text
    with pytest.raises(ValueError, match=r"none of the classes asked for, \['horse'\]"):
        pseudo_labelled(images(), store=store, class_names=["horse"])


def test_a_box_left_out_for_its_class_does_not_use_up_the_count(tmp_path: Path) -> None:
    row = rows()[0]
    store = make_store(tmp_path / "store", [row])
    result = pseudo_labelled(images(KEYS[:1]), store=store, top_k=5, class_names=["cat"])
    cats = [i for i in by_hand(row, None, 0.0) if row.classes[i] == 0][:5]
    np.testing.assert_array_equal(result.boxes, row.boxes.astype(np.float32)[cats])


def test_a_store_without_classes_has_one(tmp_path: Path) -> None:
    made = [row._replace(classes=np.zeros(len(row.scores), int)) for row in rows()]
    store = make_store(tmp_path / "store", made, class_names=None)
    result = pseudo_labelled(images(), store=store)
    assert result.class_names == ("object",)
    assert set(result.classes.tolist()) == {0}


def test_boxes_without_area_are_no_targets(tmp_path: Path) -> None:
    row = rows()[1]
    row.boxes[0, 2] = row.boxes[0, 0]
    store = make_store(tmp_path / "store", [row])
    result = pseudo_labelled(images(KEYS[1:2]), store=store)
    assert len(result.boxes) == 2


def test_ids_of_categories_come_from_the_store(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", category_ids=(3, 17, 90))
    assert pseudo_labelled(images(), store=store).category_ids == (3, 17, 90)


def test_an_image_that_the_store_lacks_is_an_error(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    with pytest.raises(ValueError, match=r"lacks 2 of the 3 images of photos.*'0\.jpg'"):
        pseudo_labelled(images(["a/0.jpg", "0.jpg", "x.jpg"]), store=store)


def test_an_image_that_was_skipped_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    info = StoreInfo(method="pseudo_label", class_names=CLASSES)
    writer = BoxStoreWriter(tmp_path / "store", info=info, keys=KEYS)
    writer.write_shard(0, [rows()[i] for i in (0, 2, 3)], skipped={"b/0.jpg": "truncated"})
    store = writer.finish()
    result = pseudo_labelled(images(), store=store)
    assert result.keys() == ["a/0.jpg", "b/1.jpg", "c.jpg"]
    assert "1 images are left out" in caplog.text
    assert "b/0.jpg (truncated)" in caplog.text


def test_images_of_another_size_are_an_error(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    assert len(pseudo_labelled(images(size=(100, 200)), store=store)) == 4
    with pytest.raises(ValueError, match=r"4 differ in size.*100 x 200 in the store, 200 x 100"):
        pseudo_labelled(images(size=(200, 100)), store=store)


def test_files_of_another_size_are_an_error(tmp_path: Path) -> None:
    """Where the data set does not tell the sizes, as of a folder of images."""
    store = make_store(tmp_path / "store", image_root=str(tmp_path))
    for key in KEYS:
        path = tmp_path / key
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), np.zeros((100, 200, 3), np.uint8))
    folder = images()
    folder.root = str(tmp_path)
    assert len(pseudo_labelled(folder, store=store)) == 4
    cv2.imwrite(str(tmp_path / KEYS[3]), np.zeros((50, 100, 3), np.uint8))
    with pytest.raises(
        ValueError, match=r"made from other images.*'c\.jpg': 100 x 200 .* 50 x 100"
    ):
        pseudo_labelled(folder, store=store)


def test_another_image_root_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = make_store(tmp_path / "store", image_root="/elsewhere")
    pseudo_labelled(images(), store=store)
    assert "made from images in /elsewhere, used for those in /images" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k must be at least 1, None or 'auto', got 0"),
        ({"score_threshold": "high"}, "score_threshold must be a number or 'auto', got 'high'"),
        ({"empty": "no"}, "'keep' or 'drop', got 'no'"),
    ],
)
def test_options_out_of_range(tmp_path: Path, options: dict[str, object], message: str) -> None:
    store = make_store(tmp_path / "store")
    with pytest.raises(ValueError, match=message):
        pseudo_labelled(images(), store=store, **options)


def test_shuffled_boxes_are_those_of_another_image_scaled(tmp_path: Path) -> None:
    made = rows()
    sizes = [(100, 200), (50, 100), (200, 200), (100, 400)]
    made = [row._replace(height=h, width=w) for row, (h, w) in zip(made, sizes, strict=True)]
    made[1] = made[1]._replace(boxes=made[1].boxes / 2)
    store = make_store(tmp_path / "store", made)
    own = pseudo_labelled(images(), store=store, top_k=5)
    moved = pseudo_labelled(images(), store=store, top_k=5, shuffle_seed=3)
    sources = []
    for index, (height, width) in enumerate(sizes):
        record = moved[index]
        fitting = [
            other
            for other, (h, w) in enumerate(sizes)
            if len(own[other].boxes) == len(record.boxes)
            and np.allclose(record.boxes / ([width, height] * 2), own[other].boxes / ([w, h] * 2))
            and (own[other].classes == record.classes).all()
        ]
        assert len(fitting) == 1
        sources += fitting
    assert sorted(sources) == [0, 1, 2, 3]
    assert all(source != index for index, source in enumerate(sources))
    with pytest.raises(ValueError, match="no other image to take the boxes of"):
        pseudo_labelled(images(["c.jpg"]), store=store, top_k=5, shuffle_seed=3)
    again = pseudo_labelled(images(), store=store, top_k=5, shuffle_seed=3)
    assert (again.boxes == moved.boxes).all()
