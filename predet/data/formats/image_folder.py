"""A folder of images without annotations, read with all folders below it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from predet.data.dataset import DetectionDataset
from predet.data.formats.builder import DatasetBuilder

_logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


def detect(path: Path) -> str | None:
    """Why this is a folder of images, or None."""
    return "a folder without annotation files" if path.is_dir() else None


def load(path: Path, *, split: str | None, image_root: Path | None) -> DetectionDataset:
    """Read all images below the folder, or below its sub-folder `split`.

    Image ids are the positions (from 1) in the order of the keys. Hidden files and folders are
    left out. Image sizes stay unknown: no file is opened.
    """
    if image_root is not None and image_root != path:
        raise ValueError(f"{path}: an image folder is its own image_root, got {image_root}")
    folder = path if split is None else path / split
    if not folder.is_dir():
        raise ValueError(f"{path}: no split {split!r}: expected a folder {folder}")
    keys, num_others = list_images(path, folder)
    if not keys:
        raise ValueError(
            f"{folder}: the data set is empty: no file ends in {sorted(IMAGE_SUFFIXES)} "
            f"({num_others} other files)"
        )
    if num_others:
        _logger.info("%s: left out %d files that are no images", folder, num_others)
    builder = DatasetBuilder(
        name=folder.resolve().name,
        root=str(path),
        source=str(folder),
        class_names=(),
        category_ids=(),
    )
    for number, key in enumerate(keys, start=1):
        builder.add_image(key=key, image_id=number)
    return builder.build()


def list_images(root: Path, folder: Path) -> tuple[list[str], int]:
    """Keys relative to `root` of the images below `folder`, sorted; the number of other files.

    Links to folders are followed, but those that lead back up. Folders that cannot be read are
    named in the log.
    """
    keys, num_others = [], 0
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_say_unreadable):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not _leads_back(Path(parent, name), folder)
        ]
        for file in files:
            if file.startswith(".") or os.path.splitext(file)[1].lower() not in IMAGE_SUFFIXES:
                num_others += 1
            else:
                keys.append(os.path.relpath(os.path.join(parent, file), root).replace(os.sep, "/"))
    return sorted(keys), num_others


def list_files(folder: Path, suffix: str) -> list[Path]:
    """The files in a folder that end in `suffix`, sorted; hidden ones are left out."""
    return sorted(file for file in folder.glob(f"*{suffix}") if not file.name.startswith("."))


def _leads_back(folder: Path, top: Path) -> bool:
    """Whether a link leads to where the walk from `top` is already: it would never end."""
    if not folder.is_symlink():
        return False
    target = folder.resolve()
    above = [parent for parent in folder.parents if parent == top or top in parent.parents]
    return any(parent.resolve().is_relative_to(target) for parent in above)


def _say_unreadable(error: OSError) -> None:
    _logger.warning("%s: left out: %s", error.filename, error.strerror)
