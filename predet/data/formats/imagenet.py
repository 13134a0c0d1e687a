"""ImageNet: images in folders named by WordNet ids, below a folder a split.

    train/n01440764/n01440764_10026.JPEG  val/n01440764/...   (or a flat val/)
    ILSVRC/Data/CLS-LOC/train/n01440764/...

The images have no boxes, and nothing here uses their labels: they are unlabelled images. The
folders serve to take a part of the classes, such as ImageNet-100 (`select_folders`).
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from predet.data.dataset import DetectionDataset
from predet.data.formats import image_folder
from predet.data.formats.splits import choose_split

_logger = logging.getLogger(__name__)

_WORDNET_ID = re.compile(r"n\d{8}")
_NESTED = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
_FLAT_SPLITS = ("val", "test")


def detect(path: Path) -> str | None:
    """Why this is an ImageNet tree, or None."""
    if not path.is_dir():
        return None
    base = _base(path)
    for folder in (base, *_children(base)):
        name = next(filter(_WORDNET_ID.fullmatch, _names(folder)), None)
        if name is not None:
            return f"{(folder / name).relative_to(path)} is named by a WordNet id"
    return None


def load(path: Path, *, split: str | None, image_root: Path | None) -> DetectionDataset:
    """Read the images of a split; keys begin with the split where there are splits."""
    base = _base(path)
    if not any(map(_WORDNET_ID.fullmatch, _names(base))):
        splits = [
            folder.name
            for folder in _children(base)
            if folder.name in _FLAT_SPLITS or any(map(_WORDNET_ID.fullmatch, _names(folder)))
        ]
        split = choose_split(split, splits, where=str(base))
    dataset = image_folder.load(base, split=split, image_root=image_root)
    folders = {key.split("/")[-2] for key in dataset.keys() if "/" in key}  # noqa: SIM118
    num_classes = sum(1 for folder in folders if _WORDNET_ID.fullmatch(folder))
    _logger.info("%s: %d folders named by WordNet ids", dataset.name, num_classes)
    return dataset


def _base(path: Path) -> Path:
    return next((path / nested for nested in _NESTED if (path / nested).is_dir()), path)


def _children(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(_names(folder))]


def _names(folder: Path) -> list[str]:
    """Names of the folders in a folder; none in one that may not be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.is_dir()]
    except PermissionError:  # such as lost+found
        return []
