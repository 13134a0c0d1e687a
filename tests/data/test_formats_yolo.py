"""YOLO: data.yaml, the places of images and labels, the lines of label files."""

import logging

import numpy as np
import pytest

from predet.data.formats import load_dataset

LABELS = {
    "a": "1 0.5 0.5 0.25 0.5\n\n0 0.25 0.25 0.5 0.5\n",
    "b": "0 0.75 0.125 0.5 0.75 0.25 0.25\n",  # a polygon
    "c": "",
}
# Of 24 x 32 pixels, by hand.
BOXES = {
    "a": [[12, 6, 20, 18], [0, 0, 16, 12]],
    "b": [[8, 3, 24, 18]],
    "c": np.zeros((0, 4)),
    "d": np.zeros((0, 4)),
}


@pytest.fixture
def root(write_image, tmp_path):
    for number, stem in enumerate("abcd"):
        write_image(tmp_path / "images" / "train" / "deep" / f"{stem}.png", seed=number)
    for stem, text in LABELS.items():
        path = tmp_path / "labels" / "train" / "deep" / f"{stem}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    write_yaml(tmp_path)
    return tmp_path


def write_yaml(root, text="names: [cat, dog]\nnc: 2\ntrain: images/train\n"):
    (root / "data.yaml").write_text(text)


def check(dataset, folder="images/train/deep"):
    assert [dataset[i].key for i in range(4)] == [f"{folder}/{stem}.png" for stem in "abcd"]
    for index, stem in enumerate("abcd"):
        np.testing.assert_array_equal(dataset[index].boxes, BOXES[stem])
    assert dataset[0].classes.tolist() == [1, 0]
    assert (dataset.class_names, dataset.category_ids) == (("cat", "dog"), (0, 1))


def test_boxes_polygons_empty_and_missing_files(root, caplog):
    caplog.set_level(logging.INFO)
    dataset = load_dataset(root)
    check(dataset)
    assert (dataset[0].height, dataset[0].width, dataset[0].path) == (
        24,
        32,
        str(root / "images/train/deep/a.png"),
    )
    assert "format yolo (data.yaml lies in it)" in caplog.text
    assert "1 of 4 images have no label file, so no objects: the first is" in caplog.text
    check(load_dataset(root / "data.yaml", split="train"))


ABSOLUTE = "{root}/images/train"


@pytest.mark.parametrize(
    "text",
    [
        "names: {0: cat, 1: dog}\ntrain: images/train\n",
        "names: {1: dog, 0: cat}\npath: .\ntrain: images/train/\nval:\n",
        "names: [cat, dog]\npath: /nowhere/data\ntrain: images/train\n",
        "names: [cat, dog]\ntrain: ../images/train\n",
        "names: [cat, dog]\ntrain: {root}/images/train\n",
        "names: [cat, dog]\ntrain: [list.txt, more.txt]\n",
    ],
)
def test_splits_are_folders_lists_and_files(root, text):
    (root / "list.txt").write_text("./images/train/deep/b.png\n\nimages/train/deep/a.png\n")
    (root / "more.txt").write_text(f"images/train/deep/c.png\n{root}/images/train/deep/d.png")
    write_yaml(root, text.replace("{root}", str(root)))
    check(load_dataset(root, split="train"))


def test_a_list_that_begins_with_a_byte_order_mark(root):
    names = [f"./images/train/deep/{stem}.png" for stem in "abcd"]
    (root / "train.txt").write_text("\ufeff" + "\r\n".join(names) + "\r\n", encoding="utf-8")
    write_yaml(root, "names: [cat, dog]\ntrain: train.txt\n")
    check(load_dataset(root))


def test_labels_beside_the_images_and_images_beside_the_yaml(root, tmp_path_factory):
    for file in sorted((root / "labels" / "train" / "deep").iterdir()):
        file.rename(root / "images" / "train" / "deep" / file.name)
    other = tmp_path_factory.mktemp("other")
    write_yaml(other, f"names: [cat, dog]\nvalid: {root}/images/train\n")
    dataset = load_dataset(other, split="val")
    assert dataset[0].path == str(root / "images/train/deep/a.png")
    assert dataset[0].boxes.tolist() == BOXES["a"]
    write_yaml(other, "names: [cat, dog]\ntrain: images/train\n")
    check(load_dataset(other, image_root=root))


def test_boxes_past_the_border_are_cut_and_bad_ones_named(root, caplog):
    caplog.set_level(logging.INFO)
    path = root / "labels" / "train" / "deep" / "a.txt"
    path.write_text("0 0.0 0.5 0.5 0.5\n1 0.5 0.5 0 0.5\n0 nan 0.5 0.5 0.5\n0 1.5 0.5 0.5 0.5\n")
    dataset = load_dataset(root)
    assert dataset[0].boxes.tolist() == [[0, 6, 8, 18]]
    assert "cut 1 at the border" in caplog.text
    path.write_text("0 0.4999999999 0.5 1 0.5\n")  # rounded
    assert load_dataset(root)[0].boxes[0, 0] == 0
    assert "skipped 0 boxes; cut 0 at the border" in caplog.text
    assert "deep/a.png: skipped line 2: box" in caplog.text
    assert "skipped 3 boxes (no area: 1, not a number: 1, outside its image: 1)" in caplog.text


def test_an_image_that_cannot_be_read_keeps_its_place_without_boxes(root, caplog):
    (root / "images" / "train" / "deep" / "a.png").write_bytes(b"damaged")
    dataset = load_dataset(root)
    assert (len(dataset), len(dataset[0].boxes)) == (4, 0)
    assert "deep/a.txt: its 2 boxes are left out, for: " in caplog.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "0 0.5 0.5 0.5",
            r"a.txt, line 2: expected 'class x y width height' .*got '0 0.5 0.5 0.5'",
        ),
        ("0 0.5 0.5 0.5 0.5 0.9", "line 2: expected .* a prediction with its confidence"),
        ("0 .1 .1 .2 .2 .3 .3 .4", "line 2: expected 'class x y width height' or"),
        ("cat 0.5 0.5 0.5 0.5", "line 2: expected .*got 'cat 0.5"),
        ("2 0.5 0.5 0.5 0.5", r"line 2: class must be a whole number in \[0, 2\), got '2'"),
        ("-1 0.5 0.5 0.5 0.5", r"line 2: class must be a whole number in \[0, 2\), got '-1'"),
        ("0.5 0.5 0.5 0.5 0.5", r"line 2: class must be a whole number in \[0, 2\), got '0.5'"),
        ("nan 0.5 0.5 0.5 0.5", "line 2: class must be a whole number"),
        ("0 10 12 8 8", "line 2: expected .* in fractions of the image, got .*are these pixels"),
        ("0", "line 2: expected 'class x y width height'"),
    ],
)
def test_faulty_lines_are_refused_by_file_and_line(root, line, message):
    path = root / "labels" / "train" / "deep" / "a.txt"
    path.write_text(f"0 0.5 0.5 0.5 0.5\n{line}\n")
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(root)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [cat\n", "not valid YAML"),
        ("- cat\n", "expected keys such as 'names' and 'train', got list"),
        ("train: images/train\n", "'names' must be a list or 0: name, 1: name, ..., got None"),
        ("names: [cat, no]\ntrain: x\n", "a class name must be text, got False: put it in quotes"),
        ("names: {1: cat, 2: dog}\ntrain: x\n", r"must number the classes 0..1, got \[1, 2\]"),
        ("names: [cat, cat]\ntrain: x\n", "each name must occur once in 'names'"),
        ("names: [cat]\nnc: 80\ntrain: x\n", "'nc' is 80, but 'names' holds 1"),
        ("names: [cat]\n", "expected 'train', 'val' or 'test', got"),
        ("names: [cat]\ntrain: 7\n", "'train' must be a path or a list of paths, got 7"),
        ("names: [cat]\ntrain: gone\n", "'train' names 'gone', which is not there: looked for"),
        ("names: [cat]\ntrain: data.yaml\n", "'train' must be a folder or a .txt list"),
        ("names: [cat]\ntrain: labels\n", "'train' is empty: no images in 'labels'"),
        ("names: [cat]\ntrain: x\nval: y\n", r"which split\? expected one of \['train', 'val'\]"),
    ],
)
def test_faulty_yamls_are_refused_by_name(root, text, message):
    write_yaml(root, text)
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(root)
    assert str(root / "data.yaml") in str(caught.value)


def test_lists_hold_images(root):
    (root / "list.txt").write_text("images/train/deep/a.png\nlabels/train/deep/a.txt\n")
    write_yaml(root, "names: [cat, dog]\ntrain: list.txt\n")
    with pytest.raises(
        ValueError, match=r"list.txt, line 2: expected the path of an image, got 'l"
    ):
        load_dataset(root)


def test_other_yamls_are_not_taken_for_data(root):
    (root / "data.yaml").rename(root / "cells.yaml")
    (root / "args.yaml").write_text("epochs: 3\n")
    (root / "broken.yaml").write_text("a: [\n")
    check(load_dataset(root))
    (root / "more.yaml").write_text("names: [cat]\ntrain: images\n")
    with pytest.raises(ValueError, match=r"expected one YAML file .*\['cells.yaml', 'more.yaml'\]"):
        load_dataset(root)
    (root / "images" / "args.yaml").write_text("epochs: 3\n")
    assert len(load_dataset(root / "images").class_names) == 0
