"""Write a data set as COCO, PASCAL VOC or YOLO, images included.

What a format cannot hold is left out and counted in the log, or rounded:

- COCO holds everything.
- VOC holds whole pixels: corners move by half a pixel at most, and boxes that become thinner than
  two pixels grow to two, since one with xmax <= xmin has no area for its readers. No crowds; the
  classes are those that occur.
- YOLO holds fractions of the image, written with nine digits. No crowds.

Images keep the names that they have below the folder that all of them share, with "_" for "/".
"""

from __future__ import annotations

import json
import logging
import os
import posixpath
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from predet.data.dataset import DetectionDataset
from predet.data.formats.coco_json import to_content
from predet.data.images import read_image_size

_logger = logging.getLogger(__name__)


def write_dataset(
    dataset: DetectionDataset,
    folder: str | os.PathLike[str],
    *,
    format: str,
    split: str,
    link: bool = False,
) -> None:
    """Write `dataset` as the split `split` of a data set in `folder`, which may hold other splits.

    Args:
        format: One of `WRITERS`.
        split: What the split is called there, for example "train".
        link: Make symbolic links to the images instead of copies.

    Raises:
        ValueError: An image or the format is not there; the split is there already; the other
            splits have other classes or an image of the same name; the format cannot hold this.
        BadSampleError: An image whose size is not annotated cannot be read.
    """
    if format not in WRITERS:
        raise ValueError(f"unknown format {format!r}: expected one of {list(WRITERS)}")
    folder = Path(folder)
    absent = [record.path for record in dataset if not os.path.isfile(record.path)]
    if absent:
        raise ValueError(
            f"{dataset.name}: {len(absent)} of {len(dataset)} images are not there, the first is "
            f"{absent[0]}"
        )
    names = _image_names(dataset)
    sizes = _image_sizes(dataset)
    image_folder = WRITERS[format](dataset, folder, split, names, sizes)
    image_folder.mkdir(parents=True, exist_ok=True)
    for record, name in zip(dataset, names, strict=True):
        if link:
            (image_folder / name).symlink_to(os.path.abspath(record.path))
        else:
            shutil.copyfile(record.path, image_folder / name)
    _logger.info("%s: %d images as %s in %s", dataset.name, len(dataset), format, folder)


def _write_coco(
    dataset: DetectionDataset, folder: Path, split: str, names: list[str], sizes: np.ndarray
) -> Path:
    path = folder / "annotations" / f"instances_{split}.json"
    _make_new(path, split)
    content = to_content(dataset)
    for image, name, (height, width) in zip(content["images"], names, sizes.tolist(), strict=True):
        image.update(file_name=name, height=height, width=width)
    path.write_text(json.dumps(content), encoding="utf-8")
    return folder / split


def _write_voc(
    dataset: DetectionDataset, folder: Path, split: str, names: list[str], sizes: np.ndarray
) -> Path:
    list_path = folder / "ImageSets" / "Main" / f"{split}.txt"
    annotations = folder / "Annotations"
    stems = [posixpath.splitext(name)[0] for name in names]
    known = [stem for stem in stems if (annotations / f"{stem}.xml").exists()]
    if known:
        raise ValueError(f"{annotations / known[0]}.xml is there already: of another split?")
    _make_new(list_path, split)
    annotations.mkdir(exist_ok=True)
    _say_crowds_are_left_out(dataset, "VOC")
    for index, name in enumerate(names):
        tree = _voc_tree(dataset, index, name, sizes[index])
        ElementTree.indent(tree)
        path = annotations / f"{stems[index]}.xml"
        ElementTree.ElementTree(tree).write(path, encoding="utf-8")
    list_path.write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")
    return folder / "JPEGImages"


def _voc_tree(
    dataset: DetectionDataset, index: int, name: str, size: np.ndarray
) -> ElementTree.Element:
    height, width = size.tolist()
    record = dataset[index]
    tree = ElementTree.Element("annotation")
    _add_texts(tree, {"folder": "JPEGImages", "filename": name})
    shape = ElementTree.SubElement(tree, "size")
    _add_texts(shape, {"width": width, "height": height, "depth": 3})
    kept = ~record.iscrowd
    boxes = _voc_boxes(record.boxes[kept], height, width).tolist()
    for box, category in zip(boxes, record.classes[kept], strict=True):
        item = ElementTree.SubElement(tree, "object")
        _add_texts(item, {"name": dataset.class_names[category], "difficult": 0})
        corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        _add_texts(ElementTree.SubElement(item, "bndbox"), corners)
    return tree


def _voc_boxes(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """(N, 4) absolute xyxy -> whole pixels counted from 1, both corners inside the box."""
    low = np.rint(boxes[:, :2]).astype(np.int64) + 1
    high = np.maximum(np.rint(boxes[:, 2:]).astype(np.int64), low + 1)
    # Grown beyond the border: moved back.
    beyond = np.maximum(high - np.array([width, height]), 0)
    return np.concatenate([np.maximum(low - beyond, 1), high - beyond], axis=1)


def _add_texts(parent: ElementTree.Element, texts: dict[str, str | int]) -> None:
    for tag, text in texts.items():
        ElementTree.SubElement(parent, tag).text = str(text)


def _write_yolo(
    dataset: DetectionDataset, folder: Path, split: str, names: list[str], sizes: np.ndarray
) -> Path:
    if not dataset.class_names:
        raise ValueError(f"data set {dataset.name!r} has no classes: YOLO needs at least one")
    yaml_path, labels = folder / "data.yaml", folder / "labels" / split
    content: dict[str, Any] = {"names": dict(enumerate(dataset.class_names))}
    if yaml_path.exists():
        content = yaml.safe_load(yaml_path.read_text(encoding="utf-8"))
        others = content["names"]
        others = list(others.values()) if isinstance(others, dict) else others
        if others != list(dataset.class_names):
            raise ValueError(
                f"{yaml_path}: the other splits have the classes {others}, this one has "
                f"{list(dataset.class_names)}"
            )
    _make_new(labels, split)
    labels.mkdir()
    _say_crowds_are_left_out(dataset, "YOLO")
    for index, name in enumerate(names):
        record = dataset[index]
        height, width = sizes[index].tolist()
        boxes = record.boxes[~record.iscrowd].astype(np.float64) / [width, height, width, height]
        centers, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        lines = [
            f"{category} " + " ".join(f"{number:.9g}" for number in numbers)
            for category, numbers in zip(
                record.classes[~record.iscrowd].tolist(),
                np.concatenate([centers, sides], axis=1).tolist(),
                strict=True,
            )
        ]
        path = labels / f"{posixpath.splitext(name)[0]}.txt"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    content = {split: f"images/{split}", **content}
    yaml_path.write_text(
        yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    return folder / "images" / split


WRITERS: dict[str, Callable[[DetectionDataset, Path, str, list[str], np.ndarray], Path]] = {
    "coco": _write_coco,
    "voc": _write_voc,
    "yolo": _write_yolo,
}


def _image_names(dataset: DetectionDataset) -> list[str]:
    """A file name for each image; the names without suffix are unique."""
    keys = [dataset.key(index) for index in range(len(dataset))]
    shared = posixpath.commonpath([posixpath.dirname(key) for key in keys]) if keys else ""
    names: list[str] = []
    taken: set[str] = set()
    for key in keys:
        stem, suffix = posixpath.splitext(posixpath.relpath(key, shared or "."))
        stem = wanted = stem.replace("/", "_")
        number = 2
        while stem in taken:
            stem, number = f"{wanted}_{number}", number + 1
        taken.add(stem)
        names.append(stem + suffix)
    return names


def _image_sizes(dataset: DetectionDataset) -> np.ndarray:
    """(n, 2) height and width, read from the images where they are not annotated."""
    sizes = np.stack([dataset.heights, dataset.widths], axis=1)
    for index in np.flatnonzero(sizes.min(axis=1) == 0):
        sizes[index] = read_image_size(dataset[int(index)].path)
    return sizes


def _make_new(path: Path, split: str) -> None:
    if path.exists():
        raise ValueError(f"{path} is there already: the split {split!r} was written before")
    path.parent.mkdir(parents=True, exist_ok=True)


def _say_crowds_are_left_out(dataset: DetectionDataset, format: str) -> None:
    count = int(dataset.iscrowd.sum())
    if count:
        _logger.warning("%s: %d crowds are left out: %s has none", dataset.name, count, format)
