"""What the teacher's boxes become, by hand, and shard by shard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from predet.d2 import Boxes, Instances
from predet.data.box_store_writer import BoxStoreWriter, StoreInfo
from predet.data.dataset import DetectionDataset, Record
from predet.data.images import BadSampleError
from predet.projects.self_training.labelling import label_images, label_shards


class FixedTeacher(nn.Module):
    """Says the same of every image."""

    def __init__(self, boxes: list[list[float]], scores: list[float], classes: list[int]) -> None:
        super().__init__()
        self.boxes, self.scores, self.classes = boxes, scores, classes

    def label(self, batch: list[dict[str, Any]]) -> list[Instances]:
        assert not torch.is_grad_enabled()
        return [
            Instances(
                (sample["height"], sample["width"]),
                pred_boxes=Boxes(torch.tensor(self.boxes)),
                scores=torch.tensor(self.scores),
                pred_classes=torch.tensor(self.classes),
            )
            for sample in batch
        ]


def make_sample(key: str = "a/b.jpg") -> dict[str, Any]:
    return {"key": key, "file_name": f"/images/{key}", "height": 100, "width": 200}


BOXES = [
    [70.0, 70.0, 70.0, 80.0],  # no area
    [0.0, 0.0, 10.0, 10.0],
    [50.0, 50.0, 60.0, 60.0],
    [0.0, 0.0, 10.0, 9.5],  # IoU 0.95 with the second, of another class
    [50.0, 50.0, 60.0, 57.0],  # IoU 0.7 with the third
]
SCORES = [0.95, 0.3, 0.9, 0.8, 0.7]
CLASSES = [0, 0, 1, 2, 1]


@pytest.mark.parametrize(
    ("nms_iou", "keep", "kept"),
    [
        (0.9, None, [2, 3, 4]),  # the second is a duplicate of the fourth, whatever the class
        (0.6, None, [2, 3]),
        (None, None, [2, 3, 4, 1]),
        (0.9, 2, [2, 3]),
        (None, 1, [2]),
    ],
)
def test_duplicates_go_whatever_their_class_then_the_best_are_kept(
    nms_iou: float | None, keep: int | None, kept: list[int]
) -> None:
    teacher = FixedTeacher(BOXES, SCORES, CLASSES)
    (row,) = label_images(teacher, [make_sample()], nms_iou=nms_iou, keep=keep)
    assert (row.key, row.height, row.width) == ("a/b.jpg", 100, 200)
    np.testing.assert_array_equal(row.boxes, np.asarray(BOXES, np.float32)[kept])
    np.testing.assert_array_equal(row.scores, np.asarray(SCORES, np.float32)[kept])
    np.testing.assert_array_equal(row.classes, np.asarray(CLASSES)[kept])


def test_equal_scores_stay_in_the_order_of_the_queries() -> None:
    boxes = [[10.0 * i, 0.0, 10.0 * i + 5, 5.0] for i in range(40)]
    teacher = FixedTeacher(boxes, [0.5] * 40, list(range(40)))
    for nms_iou in (0.9, None):
        (row,) = label_images(teacher, [make_sample()], nms_iou=nms_iou)
        assert row.classes.tolist() == list(range(40))


@pytest.mark.parametrize(("place", "value"), [("boxes", float("inf")), ("scores", float("nan"))])
def test_what_is_not_finite_names_the_image(place: str, value: float) -> None:
    boxes, scores = [row.copy() for row in BOXES], SCORES.copy()
    if place == "boxes":
        boxes[1][2] = value
    else:
        scores[1] = value
    with pytest.raises(ValueError, match=r"/images/a/b\.jpg: the teacher's boxes or scores"):
        label_images(FixedTeacher(boxes, scores, CLASSES), [make_sample()])


def test_one_label_a_query_from_the_raw_predictions(detector: nn.Module) -> None:
    """Also of Deformable DETR, whose own detections can be several of one query."""
    sample = {
        **make_sample(),
        "image": torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8),
        "height": 128,
        "width": 192,
    }
    (row,) = label_images(detector, [sample], nms_iou=None)
    with torch.no_grad():
        output = detector.detect(detector.preprocess([sample]))
    logits, boxes = output.logits[-1, 0], output.boxes[-1, 0]
    focal = detector.criterion.classification == "focal"
    scores = logits.sigmoid() if focal else logits.softmax(-1)[:, :-1]
    order = scores.amax(1).argsort(descending=True, stable=True)
    x, y, w, h = boxes[order].unbind(1)
    corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
    limits = torch.tensor([192.0, 128.0, 192.0, 128.0])
    corners = (corners * limits).clamp(min=0).minimum(limits)
    assert len(row.scores) == len(boxes)
    np.testing.assert_allclose(row.scores, scores.amax(1)[order], atol=1e-6)
    np.testing.assert_allclose(row.boxes, corners, atol=1e-3)
    np.testing.assert_array_equal(row.classes, scores.argmax(1)[order])
    assert len(set(row.classes.tolist())) > 1


KEYS = [f"{i}.jpg" for i in range(10)]


def make_dataset() -> DetectionDataset:
    return DetectionDataset(
        name="photos",
        root="/images",
        class_names=[],
        category_ids=[],
        keys=KEYS,
        image_ids=list(range(10)),
        heights=[0] * 10,
        widths=[0] * 10,
        offsets=[0] * 11,
        boxes=[],
        classes=[],
    )


def mapper(record: Record, rng: np.random.Generator) -> dict[str, Any]:
    if record.key in ("3.jpg", "8.jpg", "9.jpg"):
        raise BadSampleError(f"{record.path}: damaged")
    return make_sample(record.key)


def run(path: Path, shards: list[int] | None = None, **options: Any) -> tuple[Any, list[int]]:
    info = StoreInfo(method="pseudo_label", class_names=("a", "b", "c"))
    writer = BoxStoreWriter(path, info=info, keys=KEYS, shard_size=4)
    settings = {"mapper": mapper, "batch_size": 3, **options}
    todo = writer.missing_shards() if shards is None else shards
    teacher = FixedTeacher(BOXES, SCORES, CLASSES)
    return writer, list(label_shards(teacher, make_dataset(), writer, todo, **settings))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_shards_are_filled_and_bad_images_listed(tmp_path: Path, num_workers: int) -> None:
    writer, counts = run(tmp_path / "store", num_workers=num_workers)
    assert counts == [3, 1, 3, 1, 2]  # batches do not cross from one shard into the next
    store = writer.finish()
    assert store.keys == [f"{i}.jpg" for i in (0, 1, 2, 4, 5, 6, 7)]
    assert sorted(store.skipped) == ["3.jpg", "8.jpg", "9.jpg"]
    assert store.skipped["3.jpg"] == "/images/3.jpg: damaged"
    assert store["5.jpg"].classes.tolist() == [1, 2, 1]


@pytest.mark.parametrize(
    ("options", "count"),
    [({"nms_iou": 0.6}, 2), ({"nms_iou": None}, 4), ({"keep": 1}, 1)],
)
def test_the_choice_of_boxes_reaches_the_store(
    tmp_path: Path, options: dict[str, Any], count: int
) -> None:
    store = run(tmp_path / "store", **options)[0].finish()
    assert [len(store[key].scores) for key in store.keys] == [count] * 7


def test_shards_made_apart_are_the_same(tmp_path: Path) -> None:
    run(tmp_path / "whole")[0].finish()
    run(tmp_path / "apart", [2])
    run(tmp_path / "apart", [0], batch_size=4)
    run(tmp_path / "apart")[0].finish()
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "apart" / file.name).read_bytes()


def test_a_bad_image_can_be_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadSampleError, match=r"3\.jpg: damaged"):
        run(tmp_path / "store", on_bad_sample="error")
    assert not list((tmp_path / "store").glob("boxes-*"))


def test_a_batch_size_of_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        run(tmp_path / "store", batch_size=0)
