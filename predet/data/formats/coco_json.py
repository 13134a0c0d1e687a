"""The content of a COCO JSON, images, categories and annotations, to a data set and back.

Where the file lies, and where its images lie, is the business of the formats that use this.
"""

from __future__ import annotations

import json
import logging
import math
import posixpath
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from predet.data.dataset import DetectionDataset
from predet.data.formats.builder import DatasetBuilder, shorten

_logger = logging.getLogger(__name__)

_SAMPLED_IMAGES = 16


class Place(NamedTuple):
    """Where the images of a JSON lie: below `folder`, by the last parts of their names."""

    folder: str  # relative to the root of the data set
    parts: int = 0  # how many parts of "file_name" count; 0 = all

    def key(self, file_name: str) -> str:
        if self.parts:
            file_name = "/".join(file_name.split("/")[-self.parts :])
        return posixpath.normpath(posixpath.join(self.folder, file_name))


def read_content(path: Path) -> dict[str, Any]:
    """Read a COCO JSON; its images come in the order of their ids.

    Raises:
        ValueError: It is no JSON, or not that of a data set.
    """
    content = _read_json(path)
    _check_layout(content, path)
    content["images"] = sorted(content["images"], key=lambda image: _image_id(image, path))
    return content


def find_images(
    content: dict[str, Any], *, json_path: Path, root: Path, places: Sequence[Place]
) -> Place:
    """The first of `places` that holds one of a sample of the images, else a warning."""
    images = content["images"]
    step = max(1, len(images) // _SAMPLED_IMAGES)
    names = [_file_name(image, json_path, root) for image in images[::step]]
    for place in places:
        if any((root / place.key(name)).is_file() for name in names):
            return place
    _logger.warning(
        "%s: found none of %d images looked for (such as %r) in %s: pass image_root",
        json_path,
        len(names),
        names[0],
        list(dict.fromkeys(str(root / place.folder) for place in places)),
    )
    return next(place for place in places if (root / place.folder).is_dir())


def build_dataset(
    content: dict[str, Any], *, json_path: Path, name: str, root: Path, place: Place
) -> DetectionDataset:
    """Make the data set. Classes are the categories in the order of their ids.

    Raises:
        ValueError: An image, a category or an annotation is faulty.
    """
    names = _category_names(content.get("categories", []), json_path)
    builder = DatasetBuilder(
        name=name,
        root=str(root),
        source=str(json_path),
        class_names=list(names.values()),
        category_ids=list(names),
    )
    index_of_id: dict[int, int] = {}
    for image in content["images"]:
        index_of_id[image["id"]] = builder.add_image(
            key=place.key(_file_name(image, json_path, root)),
            image_id=image["id"],
            height=_pixels(image, "height", json_path),
            width=_pixels(image, "width", json_path),
        )
    _add_annotations(builder, content.get("annotations", []), index_of_id, list(names), json_path)
    return builder.build()


def to_content(dataset: DetectionDataset) -> dict[str, Any]:
    """A data set as the content of a COCO JSON; ids of annotations count from 1.

    Images of unknown size have height and width 0.
    """
    image_of = np.repeat(dataset.image_ids, np.diff(dataset.offsets)).tolist()
    boxes = dataset.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    images = zip(
        dataset.image_ids.tolist(), dataset.heights.tolist(), dataset.widths.tolist(), strict=True
    )
    annotations = zip(
        image_of,
        [dataset.category_ids[label] for label in dataset.classes],
        boxes.tolist(),
        dataset.areas.tolist(),
        dataset.iscrowd.astype(int).tolist(),
        strict=True,
    )
    return {
        "images": [
            {"id": image_id, "file_name": dataset.key(index), "height": height, "width": width}
            for index, (image_id, height, width) in enumerate(images)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image_id,
                "category_id": category,
                "bbox": box,
                "area": area,
                "iscrowd": crowd,
            }
            for number, (image_id, category, box, area, crowd) in enumerate(annotations, start=1)
        ],
        "categories": [
            {"id": category, "name": name}
            for category, name in zip(dataset.category_ids, dataset.class_names, strict=True)
        ],
    }


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
    return float(area) if isinstance(area, int | float) and area >= 0 else math.nan
