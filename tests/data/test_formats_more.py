"""Objects365, Roboflow's COCO, ImageNet trees; which format is taken where several would fit."""

import json
import logging

import numpy as np
import pytest

from predet.data.formats import load_dataset
from predet.data.sources import load_images
from predet.data.subset import select_folders

V1, V2 = "objects365_v1_00420917.jpg", "objects365_v2_00908727.jpg"
MISSING = "objects365_v1_00320532.jpg"


def objects365_content():
    names = [f"images/v1/patch8/{V1}", f"images/v2/patch16/{V2}", f"images/v1/patch6/{MISSING}"]
    marks = {"isfake": 0, "isreflected": 0, "iscrowd": 0, "area": 5.0}
    return {
        "images": [
            {"id": number, "file_name": name, "height": 24, "width": 32, "license": 5, "url": ""}
            for number, name in enumerate(names, start=7)
        ],
        "annotations": [
            marks | {"id": 1, "image_id": 7, "category_id": 2, "bbox": [30.5, -0.76, 2.5, 9.76]},
            marks | {"id": 2, "image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "isfake": 1},
            marks | {"id": 3, "image_id": 8, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1},
            marks | {"id": 4, "image_id": 9, "category_id": 1, "bbox": [0, 0, 9, 9]},
        ],
        "categories": [{"id": 1, "name": "Person"}, {"id": 2, "name": "Sneakers"}],
    }


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


OBJECTS365_PLACES = [
    ("train/patch8/{}", "train/zhiyuan_objv2_train.json"),  # as the archives unpack
    ("train/images/v1/patch8/{}", "annotations/zhiyuan_objv2_train.json"),
    ("images/v1/patch8/{}", "zhiyuan_objv2_train_fixname.json"),
    ("images/train/{}", "annotations/zhiyuan_objv2_train.json"),
]


@pytest.mark.parametrize(("image", "annotations"), OBJECTS365_PLACES)
@pytest.mark.parametrize("given", ["folder", "json"])
def test_objects365_images_are_found(write_image, tmp_path, caplog, image, annotations, given):
    caplog.set_level(logging.INFO)
    write_image(tmp_path / image.format(V1), seed=1)
    path = write_json(tmp_path / annotations, objects365_content())
    folder = given == "folder"
    dataset = load_dataset(tmp_path, split="train") if folder else load_dataset(path)
    assert dataset.image_ids.tolist() == [7, 8]
    assert dataset[0].path == str(tmp_path / image.format(V1))
    assert "format objects365 (" in caplog.text
    assert "json has annotations with 'isfake')" in caplog.text
    expected = np.float32([[30.5, 0, 32, 9], [1, 2, 4, 6]])
    np.testing.assert_allclose(dataset[0].boxes, expected, atol=1e-5)
    assert dataset.iscrowd.tolist() == [False, False, True]
    assert "1 boxes marked 'isfake', kept as objects" in caplog.text
    assert "cut 1 at the border" in caplog.text
    assert (
        f"left out 1 images that are annotated but in no archive: images/v1/patch6/{MISSING}"
        in (caplog.text)
    )


def test_an_objects365_image_that_is_there_is_not_left_out(write_image, tmp_path):
    write_image(tmp_path / "train" / "patch6" / MISSING)
    write_json(tmp_path / "annotations" / "zhiyuan_objv2_train.json", objects365_content())
    dataset = load_dataset(tmp_path)
    assert f"train/patch6/{MISSING}" in dataset.keys()  # noqa: SIM118
    assert len(dataset.boxes) == 4


def test_objects365_version_1(write_image, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    name = "obj365_train_000000900001.jpg"
    content = objects365_content()
    content["images"] = [{"id": 900001, "file_name": name, "height": 24, "width": 32}]
    content["annotations"] = [
        {"id": 1, "image_id": 900001, "category_id": 2, "bbox": [1, 2, 3, 4], "iscrowd": 0}
    ]
    write_image(tmp_path / "train" / name)
    for split in ("train", "val"):
        write_json(tmp_path / "annotations" / f"objects365_{split}.json", content)
    dataset = load_dataset(tmp_path, split="train")
    assert dataset.keys() == [f"train/{name}"]
    assert dataset[0].boxes.tolist() == [[1, 2, 4, 6]]
    assert "format objects365 (annotations/objects365_train.json names images obj365_" in (
        caplog.text
    )
    with pytest.raises(ValueError, match=r"which split\? expected one of \['train', 'val'\]"):
        load_dataset(tmp_path)
    with pytest.raises(ValueError, match=r"no split 'test': expected one of \['train', 'val'\]"):
        load_dataset(tmp_path, split="test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-30], "zhiyuan_objv2_val.json: not valid JSON, is the file truncated"),
        (lambda text: text.replace('"bbox"', '"box"'), "zhiyuan_objv2_val.json: annotation 1: 'bb"),
        (
            lambda text: text.replace('"category_id": 2', '"category_id": 366'),
            "zhiyuan_objv2_val.json: annotation 1 has category id 366, which is not in",
        ),
    ],
)
def test_faulty_objects365_is_refused_by_name(tmp_path, change, message):
    path = tmp_path / "annotations" / "zhiyuan_objv2_val.json"
    write_json(path, change(json.dumps(objects365_content())))
    with pytest.raises(ValueError, match=message):
        load_dataset(tmp_path)


def test_two_objects365_files_of_one_split_are_refused(tmp_path):
    for name in ("zhiyuan_objv2_val.json", "zhiyuan_objv2_val_fixed.json"):
        write_json(tmp_path / "annotations" / name, objects365_content())
    with pytest.raises(ValueError, match=r"two files of one split: .*val\.json and .*val_fixed"):
        load_dataset(tmp_path, split="val")
    with pytest.raises(ValueError, match=r"no annotations of Objects365: expected"):
        load_dataset(tmp_path.parent, split="val", format="objects365")


def roboflow_content(*, used=False):
    return {
        "images": [{"id": 0, "file_name": "a_jpg.rf.1.jpg", "height": 24, "width": 32}],
        "categories": [
            {"id": 0, "name": "cells", "supercategory": "none"},
            {"id": 1, "name": "RBC", "supercategory": "cells"},
            {"id": 2, "name": "cells", "supercategory": "cells"},
        ][: 2 if used else 3],
        "annotations": [
            {"id": 0, "image_id": 0, "category_id": 0 if used else 1, "bbox": [1, 2, 3, 4]},
        ],
    }


@pytest.fixture
def roboflow(write_image, tmp_path):
    for number, split in enumerate(("train", "valid")):
        write_json(tmp_path / split / "_annotations.coco.json", roboflow_content())
        write_image(tmp_path / split / "a_jpg.rf.1.jpg", seed=number)
    (tmp_path / "README.roboflow.txt").write_text("exported")
    return tmp_path


def test_roboflow_leaves_out_the_category_of_the_project(roboflow, caplog):
    caplog.set_level(logging.INFO)
    dataset = load_dataset(roboflow, split="val")
    assert (dataset.class_names, dataset.category_ids) == (("RBC", "cells"), (1, 2))
    assert dataset.keys() == ["valid/a_jpg.rf.1.jpg"]
    assert dataset[0].classes.tolist() == [0]
    assert "format roboflow (train/_annotations.coco.json lies in it)" in caplog.text
    assert "left out category 0 ('cells'): it stands for the project" in caplog.text
    one = load_dataset(roboflow / "train")
    assert (one.keys(), one.class_names) == (["a_jpg.rf.1.jpg"], ("RBC", "cells"))


def test_roboflow_keeps_category_0_in_all_splits_where_one_uses_it(roboflow, caplog):
    for split, used in (("train", False), ("valid", True)):
        content = roboflow_content(used=True)
        content["annotations"] = content["annotations"] if used else []
        write_json(roboflow / split / "_annotations.coco.json", content)
    for split in ("train", "valid"):
        assert load_dataset(roboflow, split=split).class_names == ("cells", "RBC")
        assert load_dataset(roboflow / split).class_names == ("cells", "RBC")
    assert "category 0 ('cells') is kept: 1 boxes have it" in caplog.text


def test_roboflow_refuses_what_it_cannot_read(roboflow):
    with pytest.raises(ValueError, match=r"which split\? expected one of \['train', 'valid'\]"):
        load_dataset(roboflow)
    with pytest.raises(ValueError, match="this is one split, got split='train': pass its parent"):
        load_dataset(roboflow / "train", split="train")
    with pytest.raises(ValueError, match=r"image_root=.* is unused"):
        load_dataset(roboflow, split="train", image_root=roboflow)
    (roboflow / "valid" / "_annotations.coco.json").write_text("{")
    with pytest.raises(ValueError, match=r"valid/_annotations.coco.json: not valid JSON"):
        load_dataset(roboflow, split="train")


@pytest.fixture(params=["", "ILSVRC/Data/CLS-LOC"])
def imagenet(write_image, tmp_path, request):
    base = tmp_path / request.param
    for number, wordnet_id in enumerate(("n01440764", "n01443537", "n02077923")):
        for split in ("train", "val"):
            for image in range(2):
                name = f"{wordnet_id}_{image}.JPEG"
                path = base / split / wordnet_id / name
                write_image(path.with_suffix(".jpg"), seed=number)
                path.with_suffix(".jpg").rename(path)
    return tmp_path


def test_imagenet_is_read_as_unlabelled_images(imagenet, caplog):
    caplog.set_level(logging.INFO)
    dataset = load_dataset(imagenet, split="train")
    assert len(dataset) == 6
    assert dataset.key(0) == "train/n01440764/n01440764_0.JPEG"
    assert (len(dataset.boxes), dataset.class_names) == (0, ())
    assert "train/n01440764 is named by a WordNet id)" in caplog.text
    assert "3 folders named by WordNet ids" in caplog.text
    with pytest.raises(ValueError, match=r"which split\? expected one of \['train', 'val'\]"):
        load_dataset(imagenet)
    with pytest.raises(ValueError, match=r"no split 'test': expected one of \['train', 'val'\]"):
        load_dataset(imagenet, split="test")


def test_some_classes_of_imagenet_by_wordnet_id(imagenet, tmp_path):
    listed = tmp_path / "in100.txt"
    listed.write_text("n02077923 sea_lion\n\nn01440764\n")
    expected = [
        f"train/{wnid}/{wnid}_{i}.JPEG" for wnid in ("n01440764", "n02077923") for i in (0, 1)
    ]
    for folders in (str(listed), ["n02077923", "n01440764"]):
        assert load_images(imagenet, split="train", folders=folders).keys() == expected
    dataset = load_dataset(imagenet, split="train")
    with pytest.raises(ValueError, match=r"1 of 2 folders hold no image of .*'n0000000x'"):
        select_folders(dataset, folders=["n01440764", "n0000000x"])
    with pytest.raises(ValueError, match=r"gone\.txt: expected a text file"):
        select_folders(dataset, folders="gone.txt")
    with pytest.raises(ValueError, match="expected names of folders, got none"):
        select_folders(dataset, folders=[])


def test_a_folder_that_might_have_two_formats_is_an_error(voc_root, roboflow):
    (voc_root / "data.yaml").write_text("names: [cat]\ntrain: JPEGImages\n")
    message = (
        r"might have several formats: voc \(JPEGImages/ and Annotations/ lie in it\); "
        r"yolo \(data.yaml lies in it\): name one of them"
    )
    with pytest.raises(ValueError, match=message):
        load_dataset(voc_root, split="train")
    assert load_dataset(voc_root, split="train", format="voc").name == "voc_train"
    (roboflow / "data.yaml").write_text("names: [cat]\ntrain: train\n")
    with pytest.raises(ValueError, match=r"several formats: roboflow \(.*\); yolo"):
        load_dataset(roboflow, split="train")
