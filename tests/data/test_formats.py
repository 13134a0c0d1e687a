"""VOC, image folders, detection of the format, and the real set BCCD."""

import errno
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from predet.data.formats import load_dataset
from predet.data.images import read_image


def test_voc_boxes_count_from_zero_and_difficult_objects_are_in(voc_root):
    dataset = load_dataset(voc_root, split="train")
    assert dataset.keys() == ["JPEGImages/two.png", "JPEGImages/one.png"]
    np.testing.assert_array_equal(dataset[1].boxes, [[0, 0, 32, 24], [4, 5, 10, 12]])
    assert [dataset.class_names[index] for index in dataset[1].classes] == ["sheep", "bird"]
    assert (dataset[0].height, dataset[0].width) == read_image(dataset[0].path).shape[:2]


def test_voc_classes_and_ids_are_the_same_in_all_splits(voc_root):
    train, test = (load_dataset(voc_root, split=split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("bird", "cat", "sheep")
    assert train.image_ids.tolist() == [3, 1]
    assert test.image_ids.tolist() == [2]
    assert (train.name, test.name) == ("voc_train", "voc_test")


def test_voc_without_area_is_judged_as_written(voc_root, caplog):
    caplog.set_level(logging.INFO)
    path = voc_root / "Annotations" / "three.xml"
    text = path.read_text()
    path.write_text(text.replace("<xmax>4</xmax>", "<xmax>2</xmax>"))
    dataset = load_dataset(voc_root, split="test")
    assert len(dataset.boxes) == 0
    assert "JPEGImages/three.png: skipped object 1 (bird): box [2.0, 2.0, 2.0, 5.0]" in caplog.text
    assert "skipped 1 boxes (no area: 1)" in caplog.text


def test_voc_without_lists_reads_everything(voc_root):
    for file in (voc_root / "ImageSets" / "Main").iterdir():
        file.unlink()
    assert load_dataset(voc_root).image_ids.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</annotation>", "", "three.xml: not valid XML: .*truncated"),
        ("annotation>", "other>", "three.xml: not a VOC file: expected <annotation>, got <other>"),
        ("<name>bird</name>", "", "three.xml: object 1 has no <name>"),
        ("<xmin>2</xmin>", "", r"three.xml: object 1 \(bird\): <bndbox> .*got \[None, '3'"),
        ("<xmin>2</xmin>", "<xmin>two</xmin>", r"object 1 \(bird\): <bndbox> must hold numbers"),
        ("<width>32<", "<width>wide<", "height and width must be whole pixels, got .*'wide'"),
    ],
)
def test_faulty_voc_files_are_refused_by_name(voc_root, old, new, message):
    path = voc_root / "Annotations" / "three.xml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_dataset(voc_root, split="test")


def test_faulty_voc_splits_are_refused(voc_root):
    with pytest.raises(ValueError, match=r"which split\? expected one of \['test', 'train'\]"):
        load_dataset(voc_root)
    with pytest.raises(ValueError, match=r"no split 'val': .*\['test', 'train'\]"):
        load_dataset(voc_root, split="val")
    (voc_root / "ImageSets" / "Main" / "val.txt").write_text("two\nfour\n")
    with pytest.raises(ValueError, match=r"val.txt: 1 of 2 images .*Annotations/four.xml"):
        load_dataset(voc_root, split="val")


def test_voc_names_may_hold_blanks_and_lists_come_from_windows_and_macos(voc_root, write_image):
    for folder, suffix in (("JPEGImages", "png"), ("Annotations", "xml")):
        file = voc_root / folder / f"one.{suffix}"
        file.rename(file.with_stem("one of two"))
    lists = voc_root / "ImageSets" / "Main"
    (lists / "val.txt").write_bytes(b"\xef\xbb\xbfone of two\r\ntwo  -1\r\n")
    (lists / "._val.txt").write_bytes(b"left by a file manager")
    (voc_root / "Annotations" / "._two.xml").write_bytes(b"left by a file manager")
    dataset = load_dataset(voc_root, split="val")
    assert dataset.keys() == ["JPEGImages/one of two.png", "JPEGImages/two.png"]
    with pytest.raises(ValueError, match=r"expected one of \['test', 'train', 'val'\]"):
        load_dataset(voc_root)


def test_a_nan_in_voc_is_skipped(voc_root, caplog):
    path = voc_root / "Annotations" / "three.xml"
    path.write_text(path.read_text().replace("<xmin>2<", "<xmin>nan<"))
    assert len(load_dataset(voc_root, split="test").boxes) == 0
    assert "box [nan, 2.0, 4.0, 5.0] (xyxy): not a number" in caplog.text


def test_image_folders_are_read_in_the_order_of_their_keys(image_folder):
    (image_folder / "notes.txt").write_text("no image")
    (image_folder / "first" / "._0.png").write_bytes(b"left by a file manager")
    (image_folder / ".cache").mkdir()
    (image_folder / ".cache" / "0.png").write_bytes(b"hidden")
    dataset = load_dataset(image_folder)
    expected = [f"first/{i}.png" for i in range(5)] + [f"second/{i}.png" for i in range(5, 8)]
    assert dataset.keys() == expected
    assert dataset.image_ids.tolist() == list(range(1, 9))
    assert (dataset.num_classes, len(dataset.boxes), dataset[0].height) == (0, 0, 0)
    part = load_dataset(image_folder, split="second")
    assert part.root == dataset.root  # so that the keys of a part are those of the whole
    assert part.keys() == expected[5:]


def test_links_to_folders_are_followed_but_not_in_circles(image_folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("elsewhere")
    (image_folder / "second").rename(other / "second")
    (image_folder / "second").symlink_to(other / "second")
    (image_folder / "self").symlink_to(".")
    (image_folder / "first" / "up").symlink_to(image_folder.parent)
    (other / "second" / "back").symlink_to(image_folder / "first")
    keys = load_dataset(image_folder).keys()
    assert [key for key in keys if not key.startswith("second/back")] == [
        *(f"first/{i}.png" for i in range(5)),
        *(f"second/{i}.png" for i in range(5, 8)),
    ]
    # What the link leads to is no folder above it, so it is read once more, and no more.
    assert len(keys) == 13


def test_a_folder_that_may_not_be_read_is_named_and_left_out(image_folder, caplog, monkeypatch):
    (image_folder / "lost+found").mkdir()
    scandir = os.scandir

    def refusing(path):
        if Path(path).name == "lost+found":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert len(load_dataset(image_folder)) == 8
    assert "lost+found: left out: Permission denied" in caplog.text


def test_numbers_on_a_command_line_are_names_of_folders(image_folder, monkeypatch):
    (image_folder / "second").rename(image_folder / "2023")
    image_folder.rename(image_folder.with_name("2024"))
    monkeypatch.chdir(image_folder.parent)
    assert len(load_dataset(2024)) == 8
    assert load_dataset("2024", split=2023).key(0) == "2023/5.png"


def test_empty_and_missing_folders_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"the data set is empty: .*\(1 other files\)"):
        load_dataset(tmp_path)
    with pytest.raises(ValueError, match="no split 'val': expected a folder"):
        load_dataset(tmp_path, split="val")
    with pytest.raises(ValueError, match="gone': no such file or folder, and no data set of this"):
        load_dataset(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"notes\.txt: no known format: expected"):
        load_dataset(tmp_path / "notes.txt")
    with pytest.raises(
        ValueError, match=r"unknown format 'csv': expected one of \['coco', 'objects"
    ):
        load_dataset(tmp_path, format="csv")


@pytest.mark.parametrize(
    ("fixture", "split", "message"),
    [
        ("voc_root", "train", "format voc (JPEGImages/ and Annotations/ lie in it)"),
        ("image_folder", None, "format image_folder (a folder without annotation files)"),
    ],
)
def test_format_is_logged_with_the_reason(request, caplog, fixture, split, message):
    caplog.set_level(logging.INFO)
    path = request.getfixturevalue(fixture)
    load_dataset(path, split=split)
    assert f"{path}: {message}" in caplog.text


def test_format_can_be_asked_for(voc_root, caplog):
    caplog.set_level(logging.INFO)
    dataset = load_dataset(voc_root, format="image_folder")
    assert dataset.keys() == [f"JPEGImages/{stem}.png" for stem in ("one", "three", "two")]
    assert "format image_folder (asked for)" in caplog.text


def test_bccd_is_read_and_its_two_boxes_without_area_are_named(bccd, caplog):
    caplog.set_level(logging.INFO)
    parts = {split: load_dataset(bccd, split=split) for split in ("train", "val", "trainval")}
    test = load_dataset(bccd, split="test")
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 205,
        "val": 87,
        "trainval": 292,
    }
    assert len(test) == 72
    assert test.class_names == ("Platelets", "RBC", "WBC")
    assert all(part.class_names == test.class_names for part in parts.values())
    boxes = {split: len(part.boxes) for split, part in parts.items()}
    assert boxes["trainval"] == boxes["train"] + boxes["val"]
    assert boxes["trainval"] + len(test.boxes) == 4155 + 372 + 361 - 2  # counted in the files
    skipped = {text for text in caplog.messages if "skipped object" in text}
    assert len(skipped) == 2
    for stem, value in (("BloodImage_00338", "504.0, 337.0"), ("BloodImage_00343", "181.0, 329.0")):
        (line,) = [text for text in skipped if stem in text]
        assert f"(RBC): box [{value}, {value}] (xyxy): no area" in line
    assert "skipped 2 boxes (no area: 2)" in caplog.text  # of trainval
    assert read_image(test[0].path).shape == (test[0].height, test[0].width, 3)
