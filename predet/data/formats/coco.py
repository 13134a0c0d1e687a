"""COCO JSON: one file of images, categories and annotations, with the images beside it."""

from __future__ import annotations

import json
import logging
import math
import posixpath
from collections import Counter
from pathlib import Path
from typing import Any

from predet.data.dataset import DetectionDataset
from predet.data.formats.builder import DatasetBuilder, shorten

_logger = logging.getLogger(__name__)

_SPLIT_PREFIXES = ("instances_", "image_info_", "")
_SAMPLED_IMAGES = 16


def detect(path: Path) -> str | None:
    """Why this is COCO JSON, or None."""
    if path.is_file():
        return "a JSON file" if path.suffix.lower() == ".json" else None
    inside = sorted((path / "annotations").glob("*.json"))
    if inside:
        return f"annotations/ holds {inside[0].name}"
    beside = sorted(path.glob("*.json"))
    return f"{beside[0].name} lies in the folder" if len(beside) == 1 else None


def load(path: Path, *, split: str | None, image_root: Path | None) -> DetectionDataset:
    """Read a data set; `path` is the JSON file, or a folder that holds one for each split.

    Classes are the categories in the order of their ids. Images are in the order of their ids.
    `image_root` is where the images' "file_name" begins; without it the usual places are tried.
    """
    if path.is_file() and split is not None:
        raise ValueError(f"{path}: a JSON file is one split, got split={split!r}: pass its folder")
    json_path = path if path.is_file() else _choose_json(path, split)
    content = _read_json(json_path)
    _check_layout(content, json_path)
    images = sorted(content["images"], key=lambda image: _image_id(image, json_path))
    root, folder = _find_images(json_path, images, image_root)
    names = _category_names(content.get("categories", []), json_path)
    split_name = "" if json_path.stem == "annotations" else f"_{_split_of(json_path)}"
    builder = DatasetBuilder(
        name=f"{root.resolve().name}{split_name}",
        root=str(root),
        source=str(json_path),
        class_names=list(names.values()),
        category_ids=list(names),
    )
    index_of_id: dict[int, int] = {}
    for image in images:
        index_of_id[image["id"]] = builder.add_image(
            key=posixpath.normpath(posixpath.join(folder, _file_name(image, json_path, root))),
            image_id=image["id"],
            height=_pixels(image, "height", json_path),
            width=_pixels(image, "width", json_path),
        )
    _add_annotations(builder, content.get("annotations", []), index_of_id, list(names), json_path)
    return builder.build()


def _choose_json(folder: Path, split: str | None) -> Path:
    files = sorted((folder / "annotations").glob("*.json")) or sorted(folder.glob("*.json"))
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


def _read_json(path: Path) -> Any:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file)
    except json.JSONDecodeError as error:
        size = path.stat().st_size
        raise ValueError(
            f"{path}: not valid JSON, is the file truncated? ({error}; {size} bytes)"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not JSON: not text in UTF-8 ({error})") from error


def _check_layout(content: Any, path: Path) -> None:
    if isinstance(content, list):
        raise ValueError(
            f"{path}: not a COCO data set: expected an object with 'images', 'categories' and "
            f"'annotations', got a list of {len(content)} (a file of detection results?)"
        )
    if not isinstance(content, dict):
        got = type(content).__name__
        raise ValueError(f"{path}: not a COCO data set: expected an object, got {got}")
    needed = ["images"]
    if content.get("annotations"):
        needed.append("categories")
    missing = [key for key in needed if key not in content]
    if missing:
        raise ValueError(
            f"{path}: not a COCO data set: missing {missing}, found the keys {sorted(content)}"
            " (pass format='image_folder' to read only the images)"
        )
    if not content["images"]:
        raise ValueError(f"{path}: the data set is empty: no images")
    for key in ("images", "categories", "annotations"):
        entries = content.get(key, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{path}: {key!r} must be a list of objects")


def _image_id(image: dict[str, Any], path: Path) -> int:
    image_id = image.get("id")
    if not isinstance(image_id, int) or image_id < 0:
        raise ValueError(
            f"{path}: image {image.get('file_name')!r}: 'id' must be a whole number >= 0, "
            f"got {image_id!r}"
        )
    return image_id


def _file_name(image: dict[str, Any], path: Path, root: Path) -> str:
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{path}: image id {image['id']}: 'file_name' is missing, got {name!r}")
    if not Path(name).is_absolute():
        return name.replace("\\", "/")
    if not Path(name).is_relative_to(root):
        raise ValueError(
            f"{path}: image id {image['id']}: file_name {name!r} does not lie in {root}: "
            "pass the folder of the images as image_root"
        )
    return Path(name).relative_to(root).as_posix()


def _pixels(image: dict[str, Any], key: str, path: Path) -> int:
    value = image.get(key) or 0
    if not isinstance(value, int | float) or value < 0 or value != int(value):
        raise ValueError(f"{path}: image id {image['id']}: {key!r} must be pixels, got {value!r}")
    return int(value)


def _category_names(categories: list[dict[str, Any]], path: Path) -> dict[int, str]:
    """Names by category id, in the order of the ids."""
    for category in categories:
        if not isinstance(category.get("id"), int) or not isinstance(category.get("name"), str):
            raise ValueError(f"{path}: a category needs 'id' (int) and 'name', got {category}")
    for key in ("id", "name"):
        counts = Counter(category[key] for category in categories)
        repeated = [value for value, count in counts.items() if count > 1]
        if repeated:
            raise ValueError(f"{path}: category {key} occurs more than once: {shorten(repeated)}")
    ordered = sorted(categories, key=lambda category: category["id"])
    return {category["id"]: category["name"] for category in ordered}


def _find_images(
    json_path: Path, images: list[dict[str, Any]], image_root: Path | None
) -> tuple[Path, str]:
    """The root of the data set, and the folder of the images below it.

    The first candidate that holds one of a sample of the images is taken.
    """
    if image_root is not None:
        return image_root, ""
    in_annotations = json_path.parent.name == "annotations"
    root = json_path.parent.parent if in_annotations else json_path.parent
    split = _split_of(json_path)
    candidates = [split, f"images/{split}", "images", ""] if in_annotations else ["", "images"]
    step = max(1, len(images) // _SAMPLED_IMAGES)
    names = [_file_name(image, json_path, root) for image in images[::step]]
    for folder in candidates:
        if any((root / folder / name).is_file() for name in names):
            return root, folder
    if names:
        tried = [str(root / folder) for folder in candidates]
        _logger.warning(
            "%s: found none of %d images looked for (such as %r) in %s: pass image_root",
            json_path,
            len(names),
            names[0],
            tried,
        )
    existing = [folder for folder in candidates if (root / folder).is_dir()]
    return root, existing[0]


def _add_annotations(
    builder: DatasetBuilder,
    annotations: list[dict[str, Any]],
    index_of_id: dict[int, int],
    category_ids: list[int],
    path: Path,
) -> None:
    classes = {category: index for index, category in enumerate(category_ids)}
    counts = Counter(entry["id"] for entry in annotations if "id" in entry)
    repeated = [key for key, count in counts.items() if count > 1]
    if repeated:
        raise ValueError(
            f"{path}: each annotation id must occur once, but {len(repeated)} occur more often: "
            f"{shorten(repeated)}"
        )
    for position, entry in enumerate(annotations):
        label = entry.get("id", f"annotation number {position}")
        image, category = entry.get("image_id"), entry.get("category_id")
        if image not in index_of_id:
            raise ValueError(
                f"{path}: annotation {label!r} refers to image id {image!r}, which is not in "
                f"'images' ({len(index_of_id)} images)"
            )
        if category not in classes:
            raise ValueError(
                f"{path}: annotation {label!r} has category id {category!r}, which is not in "
                f"'categories': expected one of {shorten(category_ids, 20)}"
            )
        builder.add_box(
            image=index_of_id[image],
            box=_read_box(entry.get("bbox"), label, path),
            category=classes[category],
            label=label,
            iscrowd=bool(entry.get("iscrowd", 0)),
            area=_read_area(entry.get("area")),
        )


def _read_box(box: Any, label: Any, path: Path) -> tuple[float, float, float, float]:
    """From COCO's xywh to xyxy."""
    try:
        x, y, width, height = map(float, box)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: annotation {label!r}: 'bbox' must be 4 numbers [x, y, width, height], "
            f"got {box!r}"
        ) from error
    return x, y, x + width, y + height


def _read_area(area: Any) -> float:
    return float(area) if isinstance(area, int | float) else math.nan
