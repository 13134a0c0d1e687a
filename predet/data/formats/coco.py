"""COCO: one JSON file a split, of images, categories and annotations.

    annotations/instances_<split>.json  <split>/<image>.jpg

or any JSON file of that content, with the images beside it.
"""

from __future__ import annotations

from pathlib import Path

from predet.data.dataset import DetectionDataset
from predet.data.formats.coco_json import Place, build_dataset, find_images, read_content
from predet.data.formats.image_folder import list_files

_SPLIT_PREFIXES = ("instances_", "image_info_", "")


def detect(path: Path) -> str | None:
    """Why this is COCO JSON, or None."""
    if path.is_file():
        return "a JSON file" if path.suffix.lower() == ".json" else None
    inside = list_files(path / "annotations", ".json")
    if inside:
        return f"annotations/ holds {inside[0].name}"
    beside = list_files(path, ".json")
    return f"{beside[0].name} lies in the folder" if len(beside) == 1 else None


def load(path: Path, *, split: str | None, image_root: Path | None) -> DetectionDataset:
    """Read a data set; `path` is the JSON file, or a folder that holds one for each split.

    Classes are the categories in the order of their ids. Images are in the order of their ids.
    `image_root` is where the images' "file_name" begins; without it the usual places are tried.
    """
    if path.is_file() and split is not None:
        raise ValueError(f"{path}: a JSON file is one split, got split={split!r}: pass its folder")
    json_path = path if path.is_file() else _choose_json(path, split)
    content = read_content(json_path)
    root, place = image_root, Place("")
    if root is None:
        in_annotations = json_path.parent.name == "annotations"
        root = json_path.parent.parent if in_annotations else json_path.parent
        name = _split_of(json_path)
        folders = [name, f"images/{name}", "images", ""] if in_annotations else ["", "images"]
        places = [Place(folder) for folder in folders]
        place = find_images(content, json_path=json_path, root=root, places=places)
    suffix = "" if json_path.stem == "annotations" else f"_{_split_of(json_path)}"
    return build_dataset(
        content,
        json_path=json_path,
        name=f"{root.resolve().name}{suffix}",
        root=root,
        place=place,
    )


def _choose_json(folder: Path, split: str | None) -> Path:
    files = list_files(folder / "annotations", ".json") or list_files(folder, ".json")
    if not files:
        raise ValueError(f"{folder}: no COCO JSON: expected annotations/instances_<split>.json")
    if split is None:
        instances = [file for file in files if file.stem.startswith("instances_")] or files
        if len(instances) == 1:
            return instances[0]
        splits = [_split_of(file) for file in instances]
        raise ValueError(f"{folder}: which split? expected one of {splits}, got split=None")
    for prefix in _SPLIT_PREFIXES:
        for file in files:
            if file.stem == f"{prefix}{split}":
                return file
    raise ValueError(
        f"{folder}: no split {split!r}: expected annotations/instances_{split}.json, "
        f"found {[file.name for file in files]}"
    )


def _split_of(json_path: Path) -> str:
    for prefix in _SPLIT_PREFIXES:
        if prefix and json_path.stem.startswith(prefix):
            return json_path.stem[len(prefix) :]
    return json_path.stem
