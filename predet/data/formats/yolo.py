"""YOLO: a data.yaml of class names and splits, and a text file of boxes for each image.

    data.yaml          names: [cat, dog]  or  {0: cat, 1: dog};  train: images/train
    images/train/a.jpg
    labels/train/a.txt     0 0.5 0.5 0.2 0.4       class, centre x and y, width, height
                           1 0.1 0.1 0.9 0.1 0.5 0.8   class, corners of a polygon

"train", "val" and "test" are a folder, a text file that lists images, or a list of these, relative
to "path" or else to the YAML. Labels lie where the last "images" of an image's path is "labels", or
beside the image. Numbers are fractions of the width and height of the image as it is shown; of a
polygon the enclosing box is taken. No label file, or an empty one: no objects.
"""

from __future__ import annotations

import itertools
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from predet.data.dataset import DetectionDataset
from predet.data.formats.builder import DatasetBuilder
from predet.data.formats.image_folder import IMAGE_SUFFIXES, list_images
from predet.data.formats.splits import choose_split
from predet.data.formats.yolo_labels import Label, read_labels
from predet.data.images import BadSampleError, read_image_size

_logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "valid", "test")
_YAML_SUFFIXES = (".yaml", ".yml")
_USUAL_NAMES = ("data.yaml", "data.yml", "dataset.yaml")
_READING_THREADS = 8


def detect(path: Path) -> str | None:
    """Why this is YOLO, or None."""
    if path.is_file():
        if path.suffix.lower() not in _YAML_SUFFIXES:
            return None
        return "a YAML file" if path.name in _USUAL_NAMES or _is_data_set(path) else None
    files = _find_yamls(path)
    return f"{files[0].name} lies in it" if files else None


def load(path: Path, *, split: str | None, image_root: Path | None) -> DetectionDataset:
    """Read a split; `path` is the YAML or its folder.

    Image ids are the positions (from 1) in the order of the keys; category ids are the class
    numbers of the label files.
    """
    yaml_path = path if path.is_file() else _choose_yaml(path)
    content = _read_yaml(yaml_path)
    names = _class_names(content, yaml_path)
    splits = [name for name in SPLITS if content.get(name)]
    if not splits:
        raise ValueError(f"{yaml_path}: expected 'train', 'val' or 'test', got {sorted(content)}")
    split = choose_split(split, splits, where=str(yaml_path))
    base = _base_folder(content, yaml_path, image_root)
    images = _list_split(content[split], split, base, yaml_path)
    root = _common_root(base, images)
    builder = DatasetBuilder(
        name=f"{base.resolve().name}_{split}",
        root=str(root),
        source=str(yaml_path),
        class_names=names,
        category_ids=range(len(names)),
    )
    _add_images(builder, images, root, len(names), yaml_path)
    return builder.build()


def _find_yamls(folder: Path) -> list[Path]:
    """data.yaml, or else the YAML files that describe a data set."""
    usual = [folder / name for name in _USUAL_NAMES if (folder / name).is_file()]
    files = sorted(file for suffix in _YAML_SUFFIXES for file in folder.glob(f"*{suffix}"))
    return usual[:1] or [file for file in files if _is_data_set(file)]


def _choose_yaml(folder: Path) -> Path:
    files = _find_yamls(folder)
    if len(files) != 1:
        raise ValueError(
            f"{folder}: expected one YAML file with 'names' and 'train', "
            f"found {[file.name for file in files]}"
        )
    return files[0]


def _is_data_set(path: Path) -> bool:
    try:
        content = _read_yaml(path)
    except ValueError:
        return False
    return "names" in content and any(name in content for name in SPLITS)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        got = type(content).__name__
        raise ValueError(f"{path}: expected keys such as 'names' and 'train', got {got}")
    return {str(key): value for key, value in content.items()}


def _class_names(content: dict[str, Any], path: Path) -> list[str]:
    names = content.get("names")
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise ValueError(
                f"{path}: 'names' must number the classes 0..{len(names) - 1}, got {list(names)}"
            )
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise ValueError(f"{path}: 'names' must be a list or 0: name, 1: name, ..., got {names!r}")
    for name in names:
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise ValueError(f"{path}: a class name must be text, got {name!r}: put it in quotes")
    names = [str(name) for name in names]
    if len(set(names)) != len(names):
        raise ValueError(f"{path}: each name must occur once in 'names', got {names}")
    count = content.get("nc", len(names))
    if count != len(names):
        raise ValueError(f"{path}: 'nc' is {count!r}, but 'names' holds {len(names)}: {names}")
    return names


def _base_folder(content: dict[str, Any], yaml_path: Path, image_root: Path | None) -> Path:
    """What the entries of the splits are relative to."""
    if image_root is not None:
        return image_root
    written = content.get("path")
    # A "path" that leads nowhere is that of another machine.
    found = [yaml_path.parent / str(written)] if written else []
    return next((folder for folder in found if folder.is_dir()), yaml_path.parent)


def _list_split(entries: Any, split: str, base: Path, yaml_path: Path) -> list[Path]:
    """The images of a split, each an absolute path without links resolved."""
    images: list[Path] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        place = _find_entry(entry, split, base, yaml_path)
        if place.is_dir():
            images += [place / key for key in list_images(place, place)[0]]
        else:
            images += _read_list(place)
    if not images:
        raise ValueError(f"{yaml_path}: {split!r} is empty: no images in {entries!r}")
    return sorted(Path(os.path.abspath(image)) for image in images)


def _find_entry(entry: Any, split: str, base: Path, yaml_path: Path) -> Path:
    if not isinstance(entry, str):
        raise ValueError(f"{yaml_path}: {split!r} must be a path or a list of paths, got {entry!r}")
    # Exports often write ../train/images where train/images is meant.
    inner = entry
    while inner.startswith("../"):
        inner = inner[3:]
    candidates = list(dict.fromkeys([base / entry, yaml_path.parent / entry, base / inner]))
    for candidate in candidates:
        if candidate.exists():
            if candidate.is_dir() or candidate.suffix.lower() == ".txt":
                return candidate
            raise ValueError(
                f"{yaml_path}: {split!r} must be a folder or a .txt list of images, got {entry!r}"
            )
    raise ValueError(
        f"{yaml_path}: {split!r} names {entry!r}, which is not there: looked for "
        f"{[str(candidate) for candidate in candidates]}; image_root replaces 'path'"
    )


def _read_list(path: Path) -> list[Path]:
    """The images that a text file lists, relative to its folder."""
    images = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        name = line.strip()
        if not name:
            continue
        if os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:
            raise ValueError(f"{path}, line {number}: expected the path of an image, got {name!r}")
        images.append(path.parent / name)
    return images


def _common_root(base: Path, images: list[Path]) -> Path:
    folder = os.path.abspath(base)
    if all(image.is_relative_to(folder) for image in images):
        return base
    return Path(os.path.commonpath([folder, *(image.parent for image in images)]))


def _add_images(
    builder: DatasetBuilder, images: list[Path], root: Path, num_classes: int, yaml_path: Path
) -> None:
    folder = os.path.abspath(root)
    labels = [_label_file(image) for image in images]
    with ThreadPoolExecutor(_READING_THREADS) as threads:
        reading = threads.map(_read_image, images, labels, itertools.repeat(num_classes))
        for number, (image, (height, width, boxes)) in enumerate(
            zip(images, reading, strict=True), start=1
        ):
            index = builder.add_image(
                key=image.relative_to(folder).as_posix(),
                image_id=number,
                height=height,
                width=width,
            )
            for label in boxes:
                x1, y1, x2, y2 = label.box
                builder.add_box(
                    image=index,
                    box=(x1 * width, y1 * height, x2 * width, y2 * height),
                    category=label.category,
                    label=f"line {label.line}",
                )
    absent = [image for image, file in zip(images, labels, strict=True) if file is None]
    if absent:
        _logger.info(
            "%s: %d of %d images have no label file, so no objects: the first is %s",
            yaml_path,
            len(absent),
            len(images),
            absent[0],
        )


def _label_file(image: Path) -> Path | None:
    beside = image.with_suffix(".txt")
    parts = list(beside.parts)
    candidates = [beside]
    if "images" in parts[:-1]:
        last = max(index for index, part in enumerate(parts[:-1]) if part == "images")
        candidates.insert(0, Path(*parts[:last], "labels", *parts[last + 1 :]))
    return next((file for file in candidates if file.is_file()), None)


def _read_image(image: Path, file: Path | None, num_classes: int) -> tuple[int, int, list[Label]]:
    """Height, width (0 = unknown, for nothing asks for them) and labels."""
    labels = [] if file is None else read_labels(file, num_classes)
    if not labels:
        return 0, 0, []
    try:
        return *read_image_size(image), labels
    except BadSampleError as error:
        _logger.warning("%s: its %d boxes are left out, for: %s", file, len(labels), error)
        return 0, 0, []
