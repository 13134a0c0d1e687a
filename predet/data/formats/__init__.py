"""Read data sets of several formats into a `DetectionDataset`.

A format is a module with two functions: `detect(path) -> reason or None` and
`load(path, *, split, image_root) -> DetectionDataset`. To add one, write the module (use
`DatasetBuilder`, which checks boxes and reports) and enter it below. All formats are asked; where
one is a special case of another it goes first, and if two others say yes, that is an error.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import ModuleType

from predet.d2 import DatasetCatalog
from predet.data.dataset import DetectionDataset
from predet.data.formats import (
    catalog,
    coco,
    image_folder,
    imagenet,
    objects365,
    roboflow,
    voc,
    yolo,
)

_logger = logging.getLogger(__name__)

FORMATS: dict[str, ModuleType] = {
    "coco": coco,
    "objects365": objects365,
    "roboflow": roboflow,
    "voc": voc,
    "yolo": yolo,
    "imagenet": imagenet,
    "image_folder": image_folder,
}
# Where both say yes, the second is what is meant.
_SPECIAL_CASES = {"coco": {"objects365", "roboflow"}, "image_folder": {*FORMATS} - {"image_folder"}}


def load_dataset(
    source: str | os.PathLike[str],
    *,
    split: str | None = None,
    image_root: str | os.PathLike[str] | None = None,
    format: str | None = None,
) -> DetectionDataset:
    """Read a data set; which format it is, and why, is logged.

    Args:
        source: A folder, a COCO JSON, a YOLO YAML, or a name registered in Detectron2's
            `DatasetCatalog` (if no file or folder has that name).
        split: For example "train": names a file of a COCO folder, a list of a VOC root, an entry
            of a YOLO YAML or a sub-folder of images.
        image_root: Where the file names of a COCO JSON, or the paths of a YOLO YAML, begin, if that
            is not found by itself.
        format: One of `FORMATS`, for "take it as that".

    Raises:
        ValueError: Nothing is there, it has no known format or might have several, or its content
            is faulty: the message names file and key, what was expected and what was found.
    """
    # On a command line the name of a folder such as 2024 is read as a number.
    path = Path(str(source)).expanduser()
    split = None if split is None else str(split)
    root = None if image_root is None else Path(str(image_root)).expanduser()
    if format is not None and format not in FORMATS:
        raise ValueError(f"unknown format {format!r}: expected one of {list(FORMATS)}")
    if not path.exists():
        return _load_registered(str(source), split, root)
    if format is not None:
        name, reason = format, "asked for"
    else:
        name, reason = _detect(path)
    _logger.info("%s: format %s (%s)", path, name, reason)
    return FORMATS[name].load(path, split=split, image_root=root)


def _detect(path: Path) -> tuple[str, str]:
    reasons = {name: module.detect(path) for name, module in FORMATS.items()}
    reasons = {name: reason for name, reason in reasons.items() if reason is not None}
    general = {name for name in reasons if _SPECIAL_CASES.get(name, set()) & reasons.keys()}
    found = [(name, reason) for name, reason in reasons.items() if name not in general]
    if len(found) > 1:
        candidates = "; ".join(f"{name} ({reason})" for name, reason in found)
        raise ValueError(
            f"{path}: might have several formats: {candidates}: name one of them (format=...)"
        )
    if found:
        return found[0]
    raise ValueError(
        f"{path}: no known format: expected a folder of images, a COCO JSON file or folder, "
        "a VOC root (JPEGImages/, Annotations/), or the data.yaml of a YOLO folder"
    )


def _load_registered(name: str, split: str | None, image_root: Path | None) -> DetectionDataset:
    known = DatasetCatalog.list()
    if name not in known:
        raise ValueError(
            f"data set {name!r}: no such file or folder, and no data set of this name is "
            f"registered (registered: {sorted(known)})"
        )
    if split is not None:
        raise ValueError(f"data set {name!r} is registered: it has no splits, got split={split!r}")
    _logger.info("%s: format detectron2 (registered in DatasetCatalog)", name)
    return catalog.load(name, image_root=image_root)
