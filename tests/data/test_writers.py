"""Round trips between formats."""

import importlib.util
import itertools
import json
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import yaml

from predet.data.formats import load_dataset
from predet.data.formats.writers import write_dataset
from predet.data.images import read_image

# How far corners may move, in pixels.
ROUNDING = {"coco": 1e-5, "voc": 0.5 + 1e-5, "yolo": 1e-4}


def by_image(dataset):
    """Boxes and names of classes by the name of the image, without crowds."""
    found = {}
    for record in dataset:
        kept = ~record.iscrowd
        names = [dataset.class_names[label] for label in record.classes[kept]]
        found[Path(record.path).stem.removeprefix("sub_")] = (
            record.boxes[kept],
            names,
            read_image(record.path).sum(),
        )
    return found


def check_same(first, second, tolerance):
    first, second = by_image(first), by_image(second)
    assert first.keys() == second.keys()
    for name, (boxes, names, pixels) in first.items():
        assert second[name][1:] == (names, pixels)
        np.testing.assert_allclose(second[name][0], boxes, rtol=0, atol=tolerance)


@pytest.fixture
def coco(write_coco, coco_content):
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 16, (40, 2))
    sides = rng.uniform(2.5, 8, (40, 2))
    for number, box in enumerate(np.concatenate([low, sides], axis=1).tolist(), start=10):
        image, category = (10, 20, 30)[number % 3], (3, 7)[number % 2]
        coco_content["annotations"].append(
            {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0}
        )
    return load_dataset(write_coco(coco_content))


@pytest.mark.parametrize(
    "formats",
    [("coco",), ("voc",), ("yolo",), ("yolo", "voc", "coco"), ("voc", "coco", "yolo")],
    ids="-".join,
)
def test_round_trips_keep_boxes_up_to_the_rounding_of_the_formats(coco, tmp_path, formats):
    dataset, tolerance = coco, 0.0
    for format in formats:
        folder = tmp_path / format
        write_dataset(dataset, folder, format=format, split="train")
        dataset = load_dataset(folder, split="train", format=format)
        tolerance += ROUNDING[format]
        check_same(coco, dataset, tolerance)
    assert load_dataset(folder, split="train").keys() == dataset.keys()  # it is also detected


def test_coco_keeps_everything(coco, tmp_path):
    write_dataset(coco, tmp_path, format="coco", split="val")
    back = load_dataset(tmp_path, split="val")
    assert back.keys() == ["val/a.png", "val/sub_b.png", "val/c.png"]
    assert (back.class_names, back.category_ids) == (coco.class_names, coco.category_ids)
    for name in ("image_ids", "heights", "widths", "offsets", "classes", "iscrowd", "areas"):
        np.testing.assert_array_equal(getattr(back, name), getattr(coco, name))
    np.testing.assert_array_equal(back.boxes, coco.boxes)


def test_voc_is_whole_pixels_and_thin_boxes_grow_to_two(write_coco, coco_content, tmp_path):
    coco_content["annotations"] = [
        {"id": 1, "image_id": 10, "category_id": 3, "bbox": [4.2, 5.7, 0.5, 4]},
        {"id": 2, "image_id": 10, "category_id": 7, "bbox": [31.5, 23.2, 0.5, 0.8]},
        {"id": 3, "image_id": 10, "category_id": 7, "bbox": [0, 0, 32, 24], "iscrowd": 1},
    ]
    write_dataset(load_dataset(write_coco(coco_content)), tmp_path, format="voc", split="all")
    tree = ElementTree.parse(tmp_path / "Annotations" / "a.xml").getroot()
    corners = [[int(item.text) for item in box] for box in tree.iter("bndbox")]
    assert corners == [[5, 7, 6, 10], [31, 23, 32, 24]]
    assert tree.findtext("size/width") == "32"
    back = load_dataset(tmp_path, split="all")
    assert back[0].boxes.tolist() == [[4, 6, 6, 10], [30, 22, 32, 24]]


def test_splits_of_one_data_set(voc_root, tmp_path):
    for split in ("train", "test"):
        dataset = load_dataset(voc_root, split=split)
        write_dataset(dataset, tmp_path, format="yolo", split=split, link=True)
        check_same(dataset, load_dataset(tmp_path, split=split), ROUNDING["yolo"])
    assert (tmp_path / "images" / "train" / "one.png").is_symlink()
    with pytest.raises(ValueError, match=r"images/train holds one.png, which is not of this split"):
        write_dataset(dataset, tmp_path, format="yolo", split="train")
    other = dataset.with_annotations(
        name="x", class_names=["x"], category_ids=[1], offsets=[0, 0], boxes=[], classes=[]
    )
    with pytest.raises(ValueError, match=r"data.yaml: the other splits have the classes .*\['x'\]"):
        write_dataset(other, tmp_path, format="yolo", split="val")


def test_yolo_has_its_own_names_of_splits(tool, voc_root, tmp_path):
    sets = voc_root / "ImageSets" / "Main"
    (sets / "trainval.txt").write_text((sets / "train.txt").read_text())
    arguments = [f"--input={voc_root}", f"--output={tmp_path / 'yolo'}", "--format=yolo"]
    with pytest.raises(SystemExit, match=r"train, val, valid, test, got 'trainval': --split tr"):
        tool.main([*arguments, "--split", "trainval"])
    assert not (tmp_path / "yolo").exists()
    tool.main([*arguments, "--split", "trainval=train", "test"])
    for split, name in (("trainval", "train"), ("test", "test")):
        dataset = load_dataset(voc_root, split=split)
        check_same(dataset, load_dataset(tmp_path / "yolo", split=name), ROUNDING["yolo"])


def test_a_split_beside_those_of_a_yaml_that_lists_its_classes(voc_root, tmp_path):
    dataset = load_dataset(voc_root, split="test")
    text = yaml.safe_dump({"names": list(dataset.class_names), "train": "images/train"})
    (tmp_path / "data.yaml").write_text(text)
    write_dataset(dataset, tmp_path, format="yolo", split="val")
    check_same(dataset, load_dataset(tmp_path, split="val"), ROUNDING["yolo"])
    (tmp_path / "data.yaml").write_text(text.replace("images/train", "elsewhere"))
    with pytest.raises(ValueError, match="the split 'train' is there already, in elsewhere"):
        write_dataset(dataset, tmp_path, format="yolo", split="train")
    (tmp_path / "data.yaml").write_text("names: [x]\n")
    with pytest.raises(ValueError, match=r"the other splits have the classes \['x'\], this one"):
        write_dataset(dataset, tmp_path, format="yolo", split="test")


def test_unlabelled_images_and_equal_names(image_folder, tmp_path, write_image):
    write_image(image_folder / "first_0.png", seed=99)
    dataset = load_dataset(image_folder)
    write_dataset(dataset, tmp_path / "voc", format="voc", split="train")
    back = load_dataset(tmp_path / "voc", split="train")
    assert len(back) == len(dataset) == 9
    assert back.keys()[:2] == ["JPEGImages/first_0.png", "JPEGImages/first_1.png"]
    assert {read_image(record.path).sum() for record in back} == {
        read_image(record.path).sum() for record in dataset
    }
    assert (back[0].height, back[0].width) == (24, 32)
    with pytest.raises(ValueError, match=r"'images' has no classes: YOLO needs at least one"):
        write_dataset(dataset, tmp_path / "yolo", format="yolo", split="train")
    write_dataset(dataset, tmp_path / "voc", format="voc", split="val")  # the same images
    (tmp_path / "voc" / "Annotations" / "first_1.xml").write_text("<annotation/>")
    with pytest.raises(ValueError, match=r"first_1.xml is there already and says something else"):
        write_dataset(dataset, tmp_path / "voc", format="voc", split="test")
    write_image(tmp_path / "voc" / "JPEGImages" / "first_2.png", seed=98)
    with pytest.raises(ValueError, match=r"voc/.*first_2.png is there already and is not .*2.png"):
        write_dataset(dataset, tmp_path / "voc", format="voc", split="test")
    with pytest.raises(ValueError, match="unknown format 'csv': expected one of"):
        write_dataset(dataset, tmp_path, format="csv", split="train")
    (image_folder / "first_0.png").unlink()
    with pytest.raises(
        ValueError, match=r"1 of 9 images are not there, the first is .*first_0.png"
    ):
        write_dataset(dataset, tmp_path / "coco", format="coco", split="train")


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def kill_at(patch, step):
    """End the process where the `step`-th file would get its name, with half of it written."""
    steps = itertools.count(1)

    def until(real):
        def call(*names):
            if next(steps) == step:
                if real is os_replace:
                    Path(names[0]).write_bytes(b"half")
                raise KeyboardInterrupt
            return real(*names)

        return call

    os_replace = os.replace
    patch.setattr(os, "replace", until(os_replace))
    patch.setattr(Path, "symlink_to", until(Path.symlink_to))


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize(("format", "files"), [("coco", 4), ("voc", 7), ("yolo", 7)])
def test_a_killed_job_is_completed_by_the_same_call(
    coco, tmp_path, monkeypatch, format, files, link
):
    write_dataset(coco, tmp_path / "whole", format=format, split="train", link=link)
    whole = contents(tmp_path / "whole")
    assert len(whole) == files
    for step in range(1, files + 1):
        folder = tmp_path / str(step)
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            with pytest.raises(KeyboardInterrupt):
                write_dataset(coco, folder, format=format, split="train", link=link)
        with pytest.raises(ValueError):  # each format says it in its way
            load_dataset(folder, split="train", format=format)
        write_dataset(coco, folder, format=format, split="train", link=link)
        assert contents(folder) == whole


@pytest.fixture
def tool():
    path = Path(__file__).parents[2] / "tools" / "convert_dataset.py"
    spec = importlib.util.spec_from_file_location("convert_dataset", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tool(tool, voc_root, tmp_path, capsys):
    output = tmp_path / "out"
    options = ["--input", str(voc_root), "--output", str(output), "--format", "coco"]
    tool.main([*options, "--split", "train", "test"])
    content = json.loads((output / "annotations" / "instances_test.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["three.png"]
    assert content["annotations"][0]["bbox"] == [1, 2, 3, 3]
    tool.main([*options, "--split", "train", "test"])
    with pytest.raises(
        SystemExit, match=r"error: .*instances_train.json is there already and says"
    ):
        tool.main([*options[:1], str(output), *options[2:], "--split", "test", "train"])
