"""Objects365, versions 1 and 2: COCO's content with names of images that lead nowhere.

    annotations/zhiyuan_objv2_<split>.json   (or beside the images, or in the folder of the split)
    <split>/patch8/objects365_v1_00420917.jpg

Version 2 calls this image "images/v1/patch8/objects365_v1_00420917.jpg", but the archives unpack to
`patch8/`, and some people keep all images in one folder: the whole name is tried, then its last
two parts, then the last. Version 1 has plain names (`obj365_train_000000900001.jpg`).

- Three images are annotated but in no archive: they are left out where they are not there.
- Three images of version 2 have width and height exchanged in the annotations
  (`objects365_v2_02024631`, `objects365_v2_01118660`, `objects365_v1_00509398`): the loader meets
  them as bad samples.
- "isfake" (an object on a picture or a screen) is an object like others, as in published results;
  "iscrowd" is a crowd as in COCO. Boxes reach past the border by fractions of a pixel: they are
  cut and counted.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from predet.data.dataset import DetectionDataset
from predet.data.formats.coco_json import Place, build_dataset, find_images, read_content
from predet.data.formats.image_folder import list_files
from predet.data.formats.splits import choose_split

_logger = logging.getLogger(__name__)

# What only Objects365 has, and how to say so.
_MARKS = {
    b'"isfake"': "has annotations with 'isfake'",
    b"objects365_v": "names images objects365_v...",
    b"obj365_": "names images obj365_...",
}
_PEEK = 1 << 16  # bytes at either end of a JSON in which the marks are looked for
_FOLDERS = ("", "annotations", "train", "val", "test")  # where the JSON may lie
_IN_NO_ARCHIVE = ("objects365_v1_00320532", "objects365_v1_00320534", "objects365_v2_00908726")


def detect(path: Path) -> str | None:
    """Why this is Objects365, or None."""
    files = _find_jsons(path)
    if not files:
        return None
    file, reason = next(iter(files.items()))
    return f"{file.relative_to(path) if file != path else file.name} {reason}"


def load(path: Path, *, split: str | None, image_root: Path | None) -> DetectionDataset:
    """Read a split; `path` is the JSON file or the folder of the data set."""
    if path.is_file() and split is not None:
        raise ValueError(f"{path}: a JSON file is one split, got split={split!r}: pass its folder")
    json_path = path if path.is_file() else _choose_json(path, split)
    content = read_content(json_path)
    name = _split_of(json_path)
    root, place = image_root or path, Place("")
    if image_root is None:
        if path.is_file():
            root = path.parent.parent if path.parent.name == "annotations" else path.parent
        folders = [name, f"images/{name}", f"{name}/images", "images", ""]
        places = [Place(folder, parts) for parts in (0, 2, 1) for folder in folders]
        place = find_images(content, json_path=json_path, root=root, places=places)
    _leave_out_missing(content, root, place, json_path)
    num_fake = sum(bool(entry.get("isfake")) for entry in content.get("annotations", []))
    _logger.info("%s: %d boxes marked 'isfake', kept as objects", json_path, num_fake)
    return build_dataset(
        content,
        json_path=json_path,
        name=f"{root.resolve().name}_{name}",
        root=root,
        place=place,
    )


def _find_jsons(path: Path) -> dict[Path, str]:
    """The annotation files, each with what marks it as one of Objects365."""
    if path.is_file():
        files = [path] if path.suffix.lower() == ".json" else []
    else:
        files = [file for folder in _FOLDERS for file in list_files(path / folder, ".json")]
    found = {file: _mark(file) for file in files}
    return {file: reason for file, reason in found.items() if reason}


def _mark(file: Path) -> str | None:
    size = file.stat().st_size
    with open(file, "rb") as stream:
        text = stream.read(_PEEK)
        stream.seek(max(0, size - _PEEK))
        text += stream.read(_PEEK)
    return next((reason for mark, reason in _MARKS.items() if mark in text), None)


def _choose_json(folder: Path, split: str | None) -> Path:
    files = list(_find_jsons(folder))
    if not files:
        raise ValueError(
            f"{folder}: no annotations of Objects365: expected annotations/zhiyuan_objv2_<split>"
            ".json or objects365_<split>.json (pass format='image_folder' to read only the images)"
        )
    by_split: dict[str, Path] = {}
    for file in files:
        other = by_split.setdefault(_split_of(file), file)
        if other != file:
            raise ValueError(f"{folder}: two files of one split: {other} and {file}: pass one")
    return by_split[choose_split(split, sorted(by_split), where=str(folder))]


def _split_of(json_path: Path) -> str:
    found = re.search(r"(?<![a-z])(train|val|test)(?![a-z])", json_path.stem.lower())
    return found.group(1) if found else json_path.stem


def _leave_out_missing(content: dict[str, Any], root: Path, place: Place, json_path: Path) -> None:
    """Take out the images that are in no archive, with their annotations."""
    missing = {
        image["id"]: image["file_name"]
        for image in content["images"]
        if str(image.get("file_name", "")).rpartition("/")[2].rpartition(".")[0] in _IN_NO_ARCHIVE
        and not os.path.isfile(root / place.key(image["file_name"]))
    }
    if not missing:
        return
    _logger.warning(
        "%s: left out %d images that are annotated but in no archive: %s",
        json_path,
        len(missing),
        ", ".join(missing.values()),
    )
    content["images"] = [image for image in content["images"] if image["id"] not in missing]
    annotations = content.get("annotations", [])
    content["annotations"] = [item for item in annotations if item.get("image_id") not in missing]
