import logging

import numpy as np
import pytest
from pycocotools.coco import COCO

from predet.data.formats import load_dataset
from predet.data.formats.builder import MAX_NAMED_BOXES, check_boxes


def test_boxes_classes_and_ids_agree_with_pycocotools(coco_content, write_coco):
    path = write_coco(coco_content)
    oracle, dataset = COCO(str(path)), load_dataset(path)
    assert dataset.image_ids.tolist() == sorted(oracle.getImgIds())
    assert dataset.category_ids == tuple(sorted(oracle.getCatIds())) == (3, 7, 90)
    assert dataset.class_names == ("cat", "dog", "emu")
    for record in dataset:
        (info,) = oracle.loadImgs(record.image_id)
        assert (record.key, record.height, record.width) == (info["file_name"], 24, 32)
        found = oracle.loadAnns(oracle.getAnnIds(record.image_id))
        expected = np.float32([entry["bbox"] for entry in found]).reshape(-1, 4)
        xywh = np.hstack([record.boxes[:, :2], record.boxes[:, 2:] - record.boxes[:, :2]])
        np.testing.assert_array_equal(xywh, expected)
        categories = [dataset.category_ids[index] for index in record.classes]
        assert categories == [entry["category_id"] for entry in found]
        assert record.iscrowd.tolist() == [bool(entry.get("iscrowd")) for entry in found]


def test_area_is_the_annotated_one_where_there_is_one(coco_content, write_coco):
    np.testing.assert_array_equal(
        load_dataset(write_coco(coco_content)).areas, np.float32([32 * 24, 60.5, 30])
    )


@pytest.mark.parametrize(
    ("json_name", "images", "split", "prefix"),
    [
        ("annotations.json", ".", None, ""),
        ("labels.json", "images", None, "images/"),
        ("annotations/instances_val.json", "val", "val", "val/"),
        ("annotations/instances_val.json", "images/val", None, "images/val/"),
        ("annotations/instances_val.json", "images", "val", "images/"),
        ("annotations/val.json", ".", "val", ""),
        ("annotations/image_info_val.json", "val", "val", "val/"),
    ],
)
def test_images_are_found_in_the_usual_places(
    coco_content, write_coco, tmp_path, json_name, images, split, prefix
):
    path = write_coco(coco_content, json_name=json_name, images=images)
    for dataset in (load_dataset(tmp_path / "coco", split=split), load_dataset(path)):
        assert dataset.root == str(tmp_path / "coco")
        assert dataset.keys() == [f"{prefix}{name}" for name in ("a.png", "sub/b.png", "c.png")]
        assert all(np.fromfile(record.path, np.uint8).size for record in dataset)


def test_image_root_is_where_the_file_names_begin(coco_content, write_coco, tmp_path):
    path = write_coco(coco_content, images=None)
    dataset = load_dataset(path, image_root=tmp_path / "elsewhere")
    assert dataset.root == str(tmp_path / "elsewhere")
    assert dataset.keys() == ["a.png", "sub/b.png", "c.png"]


def test_images_that_are_nowhere_are_warned_of(coco_content, write_coco, caplog):
    dataset = load_dataset(write_coco(coco_content, images=None))
    assert len(dataset) == 3
    assert "found none of 3 images looked for (such as 'a.png')" in caplog.text


def test_splits_must_be_named_if_there_are_several(coco_content, write_coco, tmp_path):
    for split in ("train", "val"):
        write_coco(coco_content, json_name=f"annotations/instances_{split}.json", images=split)
    folder = tmp_path / "coco"
    assert load_dataset(folder, split="val").name == "coco_val"
    with pytest.raises(ValueError, match=r"which split\? expected one of \['train', 'val'\]"):
        load_dataset(folder)
    with pytest.raises(ValueError, match=r"no split 'test': .*found \['instances_train.json'"):
        load_dataset(folder, split="test")
    with pytest.raises(ValueError, match="a JSON file is one split, got split='val'"):
        load_dataset(folder / "annotations" / "instances_val.json", split="val")


def test_mapping_and_counts_are_logged(coco_content, write_coco, caplog):
    caplog.set_level(logging.INFO)
    path = write_coco(coco_content)
    load_dataset(path)
    assert f"{path}: format coco (a JSON file)" in caplog.text
    assert "3 images (1 without boxes), 3 boxes (1 crowds); skipped 0 boxes" in caplog.text
    assert "0=cat (id 3, 2 boxes), 1=dog (id 7, 1 boxes), 2=emu (id 90, 0 boxes)" in caplog.text


def test_faulty_boxes_are_named_skipped_and_counted(coco_content, write_coco, caplog):
    caplog.set_level(logging.INFO)
    boxes = {
        11: [5, 5, 0, 4],
        12: [5, 5, 3, 0],
        13: [5, 5, -3, 4],
        14: [float("nan"), 5, 3, 4],
        15: [40, 5, 3, 4],
        16: [-5, 5, 5, 4],
        17: [-2, 20, 10, 10],
        18: [30.5, 1, 2, 3],
    }
    for key, box in boxes.items():
        entry = {"id": key, "image_id": 30, "category_id": 3, "bbox": box}
        coco_content["annotations"].append(entry)
    path = write_coco(coco_content)
    dataset = load_dataset(path)
    np.testing.assert_array_equal(dataset[2].boxes, [[0, 20, 8, 24], [30.5, 1, 32, 4]])
    expected = {11: "no area", 12: "no area", 13: "negative", 14: "not a number"}
    expected |= {15: "outside its image of 32x24 pixels", 16: "outside its image"}
    for key, reason in expected.items():
        (line,) = [text for text in caplog.messages if f"annotation id {key}:" in text]
        assert line.startswith(f"{path}: c.png: skipped")
        assert reason in line
    assert (
        "skipped 6 boxes (negative width or height: 1, no area: 2, not a number: 1, outside its "
        "image: 2); cut 2 at the border" in caplog.text
    )
    assert "annotation id 17" not in caplog.text


def test_a_flood_of_faulty_boxes_is_counted_but_not_all_named(coco_content, write_coco, caplog):
    caplog.set_level(logging.INFO)
    coco_content["annotations"] = [
        {"id": key, "image_id": 30, "category_id": 3, "bbox": [1, 1, 0, 0]} for key in range(500)
    ]
    load_dataset(write_coco(coco_content))
    named = [text for text in caplog.messages if "skipped annotation id" in text]
    assert len(named) == MAX_NAMED_BOXES
    assert "no area: 500" in caplog.text


def test_boxes_of_images_of_unknown_size_are_not_cut_at_their_far_sides():
    boxes, faults = check_boxes(np.array([[-1.0, 2, 5000, 30]]), np.zeros((1, 2)))
    np.testing.assert_array_equal(boxes, [[0, 2, 5000, 30]])
    assert faults.tolist() == [0]


def test_unlabelled_images_load_with_a_warning(coco_content, write_coco, caplog):
    del coco_content["annotations"]
    dataset = load_dataset(write_coco(coco_content))
    assert (len(dataset), len(dataset.boxes), dataset.num_classes) == (3, 0, 3)
    assert "no annotations: of use as unlabelled images only" in caplog.text


def change(content, path, value):
    *parents, last = path
    for key in parents:
        content = content[key]
    content[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["images", 0, "id"], 20, "each image id must occur once, .*: 20"),
        (["images", 0, "file_name"], "a.png", "each image file must occur once, .*: 'a.png'"),
        (["images", 0, "id"], "30", "image 'c.png': 'id' must be a whole number >= 0, got '30'"),
        (["images", 1, "file_name"], None, "image id 20: 'file_name' is missing, got None"),
        (["images", 1, "file_name"], "/x/b.png", "'/x/b.png' does not lie in"),
        (["images", 2, "height"], "tall", "image id 10: 'height' must be pixels, got 'tall'"),
        (["images"], [], "the data set is empty: no images"),
        (["images"], {"a": 1}, "'images' must be a list of objects"),
        (["annotations", 0, "id"], 2, "each annotation id must occur once, .*: 2"),
        (["annotations", 0, "image_id"], 99, "annotation 1 refers to image id 99, .*3 images"),
        (["annotations", 0, "category_id"], 8, "annotation 1 has category id 8, .* of 3, 7, 90"),
        (["annotations", 2, "bbox"], [1, 2, 3], r"annotation 3: 'bbox' .*, got \[1, 2, 3\]"),
        (["annotations", 2, "bbox"], None, "annotation 3: 'bbox' must be 4 numbers"),
        (["annotations", 2, "bbox"], [1, 2, "wide", 4], "annotation 3: 'bbox' must be 4 numbers"),
        (["categories", 0, "id"], 3, "category id occurs more than once: 3"),
        (["categories", 0, "name"], "cat", "category name occurs more than once: 'cat'"),
        (["categories", 0], {"id": 7}, "a category needs 'id' .int. and 'name', got {'id': 7}"),
    ],
)
def test_faulty_content_is_refused_by_name(coco_content, write_coco, path, value, message):
    change(coco_content, path, value)
    json_path = write_coco(coco_content, images=None)
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(json_path)
    assert str(json_path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid JSON, is the file truncated"),
        ('{"images": [{"id": 1, "file_name": "a.p', r"truncated\? .*; 39 bytes"),
        ("[]", "got a list of 0 .a file of detection results"),
        ("3", "expected an object, got int"),
        (
            '{"info": {}, "shapes": []}',
            r"missing \['images'\], found the keys \['info', 'shapes'\]",
        ),
        ('{"annotations": [{}]}', r"missing \['images', 'categories'\]"),
        ('{"images": [1]}', "'images' must be a list of objects"),
    ],
)
def test_what_is_not_coco_is_refused_saying_what_is_missing(write_coco, content, message):
    path = write_coco(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(path)
    assert str(path) in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b"\x93NUMPY\xff\xfe")
    with pytest.raises(ValueError, match=r"x\.json: not JSON: not text in UTF-8"):
        load_dataset(path)
