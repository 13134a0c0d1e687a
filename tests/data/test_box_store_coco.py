"""Boxes go from COCO JSON into a store and back without change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predet.data.box_filters import FirstK, filter_store
from predet.data.box_store import BoxStore
from predet.data.box_store_coco import export_coco, import_coco
from predet.data.dataset import DetectionDataset


def full() -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "a/1.jpg", "height": 50, "width": 100},
            {"id": 3, "file_name": "b/1.jpg", "height": 60, "width": 80},
            {"id": 5, "file_name": "b/2.jpg", "height": 60, "width": 80},
        ],
        "categories": [{"id": 12, "name": "dog"}, {"id": 4, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 12, "bbox": [10, 20, 30.5, 5], "score": 0.25},
            {"id": 2, "image_id": 7, "category_id": 4, "bbox": [0, 0, 100, 50], "score": 0.75},
            {"id": 3, "image_id": 3, "category_id": 12, "bbox": [70, 50, 20, 20]},
        ],
    }


def save(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def make_dataset(keys: list[str], known: bool = True) -> DetectionDataset:
    """The images of `full`."""
    return DetectionDataset(
        name="photos",
        root="/data",
        class_names=["cat", "dog"],
        category_ids=[4, 12],
        keys=keys,
        image_ids=[7, 3, 5],
        heights=[50, 60, 60] if known else [0, 0, 0],
        widths=[100, 80, 80] if known else [0, 0, 0],
        offsets=[0, 0, 0, 0],
        boxes=[],
        classes=[],
    )


def test_full_file_by_hand(tmp_path: Path) -> None:
    store = import_coco(save(tmp_path / "gt.json", full()), tmp_path / "store")
    assert store.class_names == ("cat", "dog")  # in the order of the ids 4, 12
    assert store.keys == ["a/1.jpg", "b/1.jpg", "b/2.jpg"]
    first = store["a/1.jpg"]
    assert (first.height, first.width) == (50, 100)
    # Best score first; xywh has become xyxy.
    assert first.boxes.tolist() == [[0, 0, 100, 50], [10, 20, 40.5, 25]]
    assert first.scores.tolist() == [0.75, 0.25]
    assert first.classes.tolist() == [0, 1]
    # Without a score 1; clipped to the image of 80 x 60.
    assert store["b/1.jpg"].boxes.tolist() == [[70, 50, 80, 60]]
    assert store["b/1.jpg"].scores.tolist() == [1.0]
    assert len(store["b/2.jpg"].boxes) == 0
    assert store.meta["dataset"] == "gt"


def test_the_same_file_is_gone_on_with_and_another_of_its_name_is_refused(tmp_path: Path) -> None:
    for _ in range(2):
        store = import_coco(save(tmp_path / "boxes.json", full()), tmp_path / "store")
        assert store.meta["counts"]["boxes"] == 3
    moved = full()
    moved["annotations"][0]["bbox"][0] = 11
    with pytest.raises(ValueError, match="holds a box store of other settings or images:\n  param"):
        import_coco(save(tmp_path / "boxes.json", moved), tmp_path / "store")


def test_out_and_in_again_gives_the_same_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    content = full()
    content["annotations"] = []
    for image in content["images"]:
        for _ in range(50):
            x, y = rng.random(2) * [image["width"] - 2, image["height"] - 2]
            w, h = 0.5 + rng.random(2) * [image["width"] - x - 1, image["height"] - y - 1]
            content["annotations"].append(
                {
                    "image_id": image["id"],
                    "category_id": int(rng.choice([4, 12])),
                    "bbox": [x, y, w, h],
                    "score": float(rng.random()),
                }
            )
    store = import_coco(save(tmp_path / "gt.json", content), tmp_path / "store")
    export_coco(store, tmp_path / "full.json")
    export_coco(
        store,
        tmp_path / "results.json",
        results=True,
        image_ids={image["file_name"]: image["id"] for image in content["images"]},
    )
    dataset = make_dataset([image["file_name"] for image in content["images"]])
    again = [
        import_coco(tmp_path / "full.json", tmp_path / "again"),
        import_coco(tmp_path / "results.json", tmp_path / "third", dataset=dataset),
    ]
    for other in again:
        assert other.class_names == store.class_names
        for row, expected in zip(other, store, strict=True):
            assert row.key == expected.key
            np.testing.assert_array_equal(row.boxes, expected.boxes)
            np.testing.assert_array_equal(row.scores, expected.scores)
            np.testing.assert_array_equal(row.classes, expected.classes)
    exported = json.loads((tmp_path / "full.json").read_text())
    first = exported["annotations"][0]
    assert first["area"] == pytest.approx(first["bbox"][2] * first["bbox"][3])
    assert exported["categories"] == [{"id": 4, "name": "cat"}, {"id": 12, "name": "dog"}]


def test_unusable_boxes_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = full()
    for box in ([5, 5, 0, 3], [5, 5, -4, 3], [200, 5, 4, 3], [float("nan"), 0, 4, 3]):
        content["annotations"].append({"image_id": 5, "category_id": 4, "bbox": box})
    content["annotations"].append(
        {"image_id": 5, "category_id": 4, "bbox": [1, 1, 9, 9], "iscrowd": 1}
    )
    store = import_coco(save(tmp_path / "gt.json", content), tmp_path / "store")
    assert len(store["b/2.jpg"].boxes) == 0
    assert "left out 3 boxes without area" in caplog.text
    assert "left out 1 boxes that are not finite" in caplog.text
    assert "left out 1 crowd regions" in caplog.text


def broken(change: str) -> Any:
    content = full()
    if change == "list":
        return content["annotations"]
    if change == "other":
        return {"shapes": []}
    if change == "no size":
        del content["images"][1]["height"]
    elif change == "no category id":
        del content["categories"][0]["id"]
    elif change == "image twice":
        content["images"][1]["id"] = 7
    elif change == "category twice":
        content["categories"][1]["id"] = 12
    elif change == "name twice":
        content["images"][1]["file_name"] = "a/1.jpg"
    elif change == "unknown image":
        content["annotations"][2]["image_id"] = 99
    elif change == "unknown category":
        content["annotations"][2]["category_id"] = 1
    elif change == "three numbers":
        content["annotations"][2]["bbox"] = [1, 2, 3]
    elif change == "no dict":
        content["annotations"][2] = [1]
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("list", "list of results.*data set"),
        ("other", r"no COCO file: expected a dict with 'images', got \['shapes'\]"),
        ("no size", "one of the images lacks 'height'"),
        ("no category id", "one of the categories lacks 'id'"),
        ("image twice", "id 7 is there twice among the images"),
        ("category twice", "id 12 is there twice among the categories"),
        ("name twice", r"twice: \['a/1.jpg'\]"),
        ("unknown image", "annotation 2 is not usable .KeyError: 99"),
        ("unknown category", "annotation 2 is not usable"),
        ("three numbers", "annotation 2 is not usable"),
        ("no dict", "annotation 2 is not usable"),
    ],
)
def test_what_is_no_coco_is_refused(tmp_path: Path, change: str, message: str) -> None:
    source = save(tmp_path / "gt.json", broken(change))
    with pytest.raises(ValueError, match=message):
        import_coco(source, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"a\.json is not JSON"):
        import_coco(tmp_path / "a.json", tmp_path / "store")
    with pytest.raises(ValueError, match=r"none\.json cannot be read"):
        import_coco(tmp_path / "none.json", tmp_path / "store")


def test_export_needs_an_id_for_every_image(tmp_path: Path) -> None:
    store = import_coco(save(tmp_path / "gt.json", full()), tmp_path / "store")
    assert isinstance(store, BoxStore)
    with pytest.raises(ValueError, match=r"no image id was given for 'b/1\.jpg'"):
        export_coco(store, tmp_path / "out.json", image_ids={"a/1.jpg": 1})
    assert not (tmp_path / "out.json").exists()


def test_keys_are_those_of_the_data_set(tmp_path: Path) -> None:
    source = save(tmp_path / "gt.json", full())
    dataset = make_dataset(["train/b/2.jpg", "b/1.jpg", "train/a/1.jpg"])
    store = import_coco(source, tmp_path / "store", dataset=dataset)
    assert store.keys == ["train/a/1.jpg", "b/1.jpg", "train/b/2.jpg"]
    assert len(store["train/a/1.jpg"].scores) == 2
    assert store.meta["image_root"] == "/data"
    for keys, message in (
        (["a/1.jpg", "x/b/1.jpg", "y/b/1.jpg"], r"'b/1.jpg' fits 2 images of photos"),
        (["a/1.jpg", "b/1.jpg", "b/3.jpg"], r"'b/2.jpg' fits 0 images of photos .which has 'a/1"),
    ):
        with pytest.raises(ValueError, match=message):
            import_coco(source, tmp_path / "other", dataset=make_dataset(keys))


def test_a_list_of_results_needs_sizes(tmp_path: Path) -> None:
    source = save(tmp_path / "results.json", [])
    dataset = make_dataset(["a/1.jpg", "b/1.jpg", "b/2.jpg"], known=False)
    with pytest.raises(ValueError, match="sizes of 3 images of photos are not known"):
        import_coco(source, tmp_path / "store", dataset=dataset)


def test_results_of_cutler_have_one_class_of_their_own(tmp_path: Path) -> None:
    """A list as Detectron2 writes it: category 1 is its "fg", not the first class of the images."""
    results = [
        {
            "image_id": image,
            "category_id": 1,
            "bbox": [1.5, 2.0, 20.0, 10.0],
            "score": score,
            "segmentation": {"size": [60, 80], "counts": "PX1"},
        }
        for image, score in ((3, 0.4), (3, 0.9), (5, 0.7))
    ]
    source = save(tmp_path / "coco_instances_results.json", results)
    dataset = make_dataset(["a/1.jpg", "b/1.jpg", "b/2.jpg"])
    with pytest.raises(ValueError, match=r"annotation 0 is not usable .KeyError: 1"):
        import_coco(source, tmp_path / "store", dataset=dataset)
    store = import_coco(
        source, tmp_path / "store", dataset=dataset, method="cutler", class_agnostic=True
    )
    assert store.class_names is None
    assert [len(row.boxes) for row in store] == [0, 2, 1]
    assert store["b/1.jpg"].scores.tolist() == pytest.approx([0.9, 0.4])
    assert store["b/1.jpg"].boxes[0].tolist() == [1.5, 2, 21.5, 12]
    assert store["b/1.jpg"].classes.tolist() == [0, 0]


def test_maskcut_file_of_a_tree_of_images(tmp_path: Path) -> None:
    """As CutLER publishes them: names below the split, masks, no scores, boxes in stored order."""
    content = {
        "info": {"description": "ImageNet-1K: pseudo-masks with MaskCut"},
        "licenses": [{"id": 1, "name": "Apache License"}],
        "categories": [{"is_crowd": 0, "id": 1, "name": "fg"}],
        "images": [
            {
                "id": number,
                "file_name": name,
                "width": 80,
                "height": 60,
                "date_captured": "2022-01-01",
                "license": 1,
                "coco_url": "",
                "flickr_url": "",
            }
            for number, name in ((1, "n01/n01_5.JPEG"), (2, "n02/n02_5.JPEG"))
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": 1,
                "iscrowd": 0,
                "area": 50,
                "bbox": box,
                "segmentation": {"size": [60, 80], "counts": "PX1"},
                "width": 80,
                "height": 60,
            }
            for number, (image, box) in enumerate(
                [(1, [5, 5, 40, 40]), (1, [0, 0, 10, 20]), (2, [30.0, 10.0, 50.0, 50.0])], start=1
            )
        ],
    }
    source = save(tmp_path / "imagenet_train_fixsize480_tau0.15_N3.json", content)
    dataset = make_dataset(["train/n01/n01_5.JPEG", "train/n02/n02_5.JPEG", "train/n02/n02_6.JPEG"])
    store = import_coco(source, tmp_path / "store", dataset=dataset, method="maskcut")
    assert store.class_names == ("fg",)
    assert store.keys == ["train/n01/n01_5.JPEG", "train/n02/n02_5.JPEG"]
    assert store["train/n01/n01_5.JPEG"].boxes.tolist() == [[5, 5, 45, 45], [0, 0, 10, 20]]
    assert store["train/n02/n02_5.JPEG"].boxes.tolist() == [[30, 10, 80, 60]]


def test_published_proposals_of_aligndet_keep_their_order(tmp_path: Path) -> None:
    """One class, no scores, ids of their own: the first boxes of the file stay the first."""
    boxes = [[10, 10, 40, 30], [0, 0, 90, 80], [5, 6, 33, 44], [50, 20, 20, 20]]
    content = {
        "images": [
            {"id": 9, "file_name": "000000000009.jpg", "height": 100, "width": 120},
            {"id": 25, "file_name": "000000000025.jpg", "height": 80, "width": 60},
        ],
        "annotations": [
            {"id": i, "image_id": 9, "category_id": 1, "bbox": box, "iscrowd": 0, "area": 1}
            for i, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "selective_search", "supercategory": "object"}],
    }
    path = tmp_path / "train2017_ratio3size0008@0.5.json"
    path.write_text(json.dumps(content))
    store = import_coco(path, tmp_path / "store", method="selective_search-soco")
    assert store.class_names == ("selective_search",)
    row = store["000000000009.jpg"]
    corners = [[x, y, x + w, y + h] for x, y, w, h in boxes]
    assert row.boxes.tolist() == corners
    assert len(store["000000000025.jpg"].boxes) == 0
    first = filter_store(store, tmp_path / "first", filters=[FirstK(k=2)])
    assert first["000000000009.jpg"].boxes.tolist() == corners[:2]
