"""Write a data set as COCO, PASCAL VOC or YOLO, images included.

What a format cannot hold is left out and counted in the log, or rounded:

- COCO holds everything.
- VOC holds whole pixels: corners move by half a pixel at most, and boxes that become thinner than
  two pixels grow to two, since one with xmax <= xmin has no area for its readers. No crowds; the
  classes are those that occur.
- YOLO holds fractions of the image, written with nine digits. No crowds.

Images keep the names that they have below the folder that all of them share, with "_" for "/".

Files appear whole, and the one that lists the split comes last. What is there already must be what
would be written, so a job that was killed is completed by the same call.
"""

from __future__ import annotations

import filecmp
import json
import logging
import os
import posixpath
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from predet.data.dataset import DetectionDataset
from predet.data.formats.coco_json import to_content
from predet.data.formats.yolo import SPLITS as YOLO_SPLITS
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
        ValueError: An image or the format is not there; what is there already is something else;
            the other splits have other classes; the format cannot hold this.
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
    parts = WRITERS[format](dataset, folder, split, names, _image_sizes(dataset))
    parts.images.mkdir(parents=True, exist_ok=True)
    _write_images(dataset, [parts.images / name for name in names], link=link)
    for path, content in parts.labels:
        _refuse_other(path, content)
        _write(path, content)
    _write(*parts.listing)
    _logger.info("%s: %d images as %s in %s", dataset.name, len(dataset), format, folder)


def _write_images(dataset: DetectionDataset, paths: list[Path], *, link: bool) -> None:
    """Those that are not there yet; the others are compared before anything is written."""
    missing = []
    for record, path in zip(dataset, paths, strict=True):
        if not os.path.lexists(path):
            missing.append((record.path, path))
        elif not _is_written(path, record.path, link=link):
            raise ValueError(f"{path} is there already and is not {record.path}: of another split?")
    for source, path in missing:
        if link:
            path.symlink_to(os.path.abspath(source))
        else:
            shutil.copyfile(source, _beside(path))
            os.replace(_beside(path), path)


def _is_written(path: Path, source: str, *, link: bool) -> bool:
    if link:
        return path.is_symlink() and os.readlink(path) == os.path.abspath(source)
    return not path.is_symlink() and filecmp.cmp(path, source, shallow=False)


def _refuse_other(path: Path, content: bytes) -> None:
    if path.exists() and path.read_bytes() != content:
        raise ValueError(f"{path} is there already and says something else: of another split?")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _beside(path).write_bytes(content)
    os.replace(_beside(path), path)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


class _Parts(NamedTuple):
    """A split in a format."""

    images: Path  # the folder
    labels: Iterable[tuple[Path, bytes]]  # files with their contents
    listing: tuple[Path, bytes]  # of the file without which there is no such split


def _coco_parts(
    dataset: DetectionDataset, folder: Path, split: str, names: list[str], sizes: np.ndarray
) -> _Parts:
    content = to_content(dataset)
    for image, name, (height, width) in zip(content["images"], names, sizes.tolist(), strict=True):
        image.update(file_name=name, height=height, width=width)
    listing = folder / "annotations" / f"instances_{split}.json", json.dumps(content).encode()
    _refuse_other(*listing)
    return _Parts(folder / split, (), listing)


def _voc_parts(
    dataset: DetectionDataset, folder: Path, split: str, names: list[str], sizes: np.ndarray
) -> _Parts:
    stems = [posixpath.splitext(name)[0] for name in names]
    text = "".join(f"{stem}\n" for stem in stems)
    listing = folder / "ImageSets" / "Main" / f"{split}.txt", text.encode()
    _refuse_other(*listing)
    _say_crowds_are_left_out(dataset, "VOC")

    def labels() -> Iterator[tuple[Path, bytes]]:
        for index, name in enumerate(names):
            tree = _voc_tree(dataset, index, name, sizes[index])
            ElementTree.indent(tree)
            path = folder / "Annotations" / f"{stems[index]}.xml"
            yield path, ElementTree.tostring(tree, encoding="utf-8")

    return _Parts(folder / "JPEGImages", labels(), listing)


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


def _yolo_parts(
    dataset: DetectionDataset, folder: Path, split: str, names: list[str], sizes: np.ndarray
) -> _Parts:
    if not dataset.class_names:
        raise ValueError(f"data set {dataset.name!r} has no classes: YOLO needs at least one")
    if split not in YOLO_SPLITS:
        raise ValueError(
            f"YOLO's data.yaml has the splits {', '.join(YOLO_SPLITS)}, got {split!r}: "
            f"--split {split}=train writes it as train"
        )
    images = folder / "images" / split
    others = sorted({path.name for path in images.glob("[!.]*")} - set(names))
    if others:
        raise ValueError(f"{images} holds {others[0]}, which is not of this split")
    _say_crowds_are_left_out(dataset, "YOLO")

    def labels() -> Iterator[tuple[Path, bytes]]:
        for index, name in enumerate(names):
            path = folder / "labels" / split / f"{posixpath.splitext(name)[0]}.txt"
            yield path, _yolo_text(dataset, index, sizes[index]).encode()

    return _Parts(images, labels(), _yolo_listing(dataset, folder / "data.yaml", split))


def _yolo_listing(dataset: DetectionDataset, path: Path, split: str) -> tuple[Path, bytes]:
    """data.yaml with this split besides those that it has."""
    content: dict[str, Any] = {"names": dict(enumerate(dataset.class_names))}
    if path.exists():
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        others = content["names"]
        others = list(others.values()) if isinstance(others, dict) else others
        if others != list(dataset.class_names):
            raise ValueError(
                f"{path}: the other splits have the classes {others}, this one has "
                f"{list(dataset.class_names)}"
            )
    place = f"images/{split}"
    if content.setdefault(split, place) != place:
        raise ValueError(f"{path}: the split {split!r} is there already, in {content[split]}")
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return path, text.encode()


def _yolo_text(dataset: DetectionDataset, index: int, size: np.ndarray) -> str:
    """The lines of an image's boxes."""
    record, (height, width) = dataset[index], size.tolist()
    boxes = record.boxes[~record.iscrowd].astype(np.float64) / [width, height, width, height]
    centers, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    classes = record.classes[~record.iscrowd].tolist()
    rows = np.concatenate([centers, sides], axis=1).tolist()
    return "".join(
        f"{category} " + " ".join(f"{number:.9g}" for number in numbers) + "\n"
        for category, numbers in zip(classes, rows, strict=True)
    )


WRITERS: dict[str, Callable[[DetectionDataset, Path, str, list[str], np.ndarray], _Parts]] = {
    "coco": _coco_parts,
    "voc": _voc_parts,
    "yolo": _yolo_parts,
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


def _say_crowds_are_left_out(dataset: DetectionDataset, format: str) -> None:
    count = int(dataset.iscrowd.sum())
    if count:
        _logger.warning("%s: %d crowds are left out: %s has none", dataset.name, count, format)
