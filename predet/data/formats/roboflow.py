"""COCO as Roboflow exports it: a folder a split, each with its JSON beside its images.

    train/_annotations.coco.json  train/<image>.jpg  valid/...  test/...

The export adds a category 0 that stands for the whole project: the others name it as their
"supercategory", and no box has it. It is left out, unless a box of some split does have it. Other
projects write such folders too, without that category.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from predet.data.dataset import DetectionDataset
from predet.data.formats.coco_json import Place, build_dataset, read_content
from predet.data.formats.splits import choose_split

_logger = logging.getLogger(__name__)

JSON_NAME = "_annotations.coco.json"


def detect(path: Path) -> str | None:
    """Why this is a folder of Roboflow, or None."""
    if path.is_file():
        return f"the file is called {JSON_NAME}" if path.name == JSON_NAME else None
    files = _json_files(path)
    return f"{files[0].relative_to(path)} lies in it" if files else None


def load(path: Path, *, split: str | None, image_root: Path | None) -> DetectionDataset:
    """Read a split; `path` is the folder of the splits, or that of one split, or its JSON."""
    if image_root is not None:
        raise ValueError(
            f"{path}: the images of Roboflow lie beside {JSON_NAME}, image_root={image_root} is "
            "unused"
        )
    if path.is_file() or (path / JSON_NAME).is_file():
        if split is not None:
            raise ValueError(f"{path}: this is one split, got split={split!r}: pass its parent")
        root = path.parent if path.is_file() else path
        chosen, folder, siblings = root / JSON_NAME, "", _json_files(root.resolve().parent)
        siblings = [file for file in siblings if not file.samefile(chosen)]
    else:
        files = {file.parent.name: file for file in _json_files(path)}
        if not files:
            raise ValueError(f"{path}: no split of Roboflow: expected <split>/{JSON_NAME}")
        folder = choose_split(split, list(files), where=str(path))
        root, chosen = path, files.pop(folder)
        siblings = list(files.values())
    content = read_content(chosen)
    _leave_out_project(content, chosen, siblings)
    return build_dataset(
        content,
        json_path=chosen,
        name=f"{root.resolve().name}{f'_{folder}' if folder else ''}",
        root=root,
        place=Place(folder),
    )


def _json_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob(JSON_NAME), *folder.glob(f"*/{JSON_NAME}")])


def _leave_out_project(content: dict[str, Any], path: Path, siblings: list[Path]) -> None:
    """Take the category of the whole project out of `content["categories"]`."""
    categories = content.get("categories", [])
    parents = {entry.get("supercategory") for entry in categories if entry.get("id") != 0}
    project = [
        entry for entry in categories if entry.get("id") == 0 and entry.get("name") in parents
    ]
    if not project:
        return
    name = project[0]["name"]
    used = sum(_boxes_of_category_0(part) for part in [content, *map(read_content, siblings)])
    if used:
        _logger.warning("%s: category 0 (%r) is kept: %d boxes have it", path, name, used)
        return
    _logger.info("%s: left out category 0 (%r): it stands for the project", path, name)
    content["categories"] = [entry for entry in categories if entry is not project[0]]


def _boxes_of_category_0(content: dict[str, Any]) -> int:
    return sum(entry.get("category_id") == 0 for entry in content.get("annotations", []))
