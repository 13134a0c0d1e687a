"""COCO JSON in and out of a `BoxStore`, so that boxes from anywhere can be used and looked at.

Both layouts are known: a full file (`images`, `annotations`, `categories`; annotations may carry a
`score`) and a list of results (`image_id`, `category_id`, `bbox`, `score`), which needs the data
set that it belongs to. COCO boxes are xywh; the store's are xyxy.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from predet.data.box_store import BoxRow, BoxStore
from predet.data.box_store_writer import BoxStoreWriter, StoreInfo
from predet.data.dataset import DetectionDataset

logger = logging.getLogger(__name__)

# What the entries of a full file must have.
_NEEDED = {"images": ("id", "file_name", "height", "width"), "categories": ("id", "name")}


class _Image(NamedTuple):
    """An image that a file lists, under the key that it gets in the store."""

    image_id: Any
    key: str
    height: int
    width: int


def import_coco(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    dataset: DetectionDataset | None = None,
    method: str = "coco_json",
    class_agnostic: bool = False,
) -> BoxStore:
    """Make a store of the boxes in a COCO JSON file.

    Every image listed gets a row, with or without boxes. Boxes are clipped to their image; crowd
    regions and boxes that are not finite or have no area are left out, counted in the log.

    Args:
        source: a full COCO file, or a list of results.
        output: the store's folder.
        dataset: the images. A full file's names are looked up among its keys ("0.jpg" is found as
            "train/0.jpg" if only one key ends so); without it they are the keys themselves. A list
            of results takes images, sizes and categories from it, by id.
        method: what made the boxes, written into the store.
        class_agnostic: all boxes are of one class, "object", whatever the file says: for lists of
            results whose categories are not those of the data set, such as CutLER's.

    Raises:
        ValueError: not COCO, an image or category that is not listed, an id or name used twice, an
            image that the data set does not have.
    """
    content, digest = _load(Path(source))
    if isinstance(content, list):
        if dataset is None:
            raise ValueError(
                f"{source} is a list of results, which does not name its images: give the data set "
                "that it belongs to as well"
            )
        images, categories, annotations = _listed_by(dataset), _categories_of(dataset), content
    else:
        images, categories = _listed_in(content, Path(source), dataset)
        annotations = content.get("annotations", [])
    if class_agnostic:
        categories = {}  # boxes without a class
    info = StoreInfo(
        method=method,
        parameters={"file": Path(source).name, "sha256": digest},
        class_names=tuple(categories.values()) or None,
        category_ids=tuple(categories) or None,
        image_root=os.path.abspath(dataset.root) if dataset is not None else "",
        dataset=dataset.name if dataset is not None else Path(source).stem,
    )
    rows = _rows(images, list(categories), annotations, str(source))
    writer = BoxStoreWriter(output, info=info, keys=[row.key for row in rows])
    for shard in writer.missing_shards():
        writer.write_shard(shard, rows[writer.shard_slice(shard)])
    return writer.finish()


def export_coco(
    store: BoxStore,
    path: str | os.PathLike[str],
    *,
    results: bool = False,
    image_ids: Mapping[str, int] | None = None,
    category_ids: Mapping[str, int] | None = None,
) -> None:
    """Write a store's boxes as COCO JSON.

    Args:
        store: what to write.
        path: the file to make.
        results: a bare list of results instead of a full file.
        image_ids: COCO image id of each key; None counts from 1 in the store's order.
        category_ids: COCO category id of each class name. None, or names that lack a class of the
            store, which is said: those that the store has, else counted from 1 in its order.

    Raises:
        ValueError: `image_ids` lacks an image of the store.
    """
    names = store.class_names or ("object",)
    ids = store.meta["category_ids"] or list(range(1, len(names) + 1))
    if category_ids is not None:
        unknown = [name for name in names if name not in category_ids]
        if not unknown:
            ids = [category_ids[name] for name in names]
        elif store.class_names is not None:
            logger.warning(
                "the data set has no class '%s' of box store %s: category ids are %s",
                unknown[0],
                store.path,
                dict(zip(names, ids, strict=True)),
            )
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for row in store:
        if image_ids is not None and row.key not in image_ids:
            raise ValueError(f"no image id was given for '{row.key}' of box store {store.path}")
        image_id = len(listed) + 1 if image_ids is None else int(image_ids[row.key])
        listed.append(
            {"id": image_id, "file_name": row.key, "height": row.height, "width": row.width}
        )
        corners = row.boxes.astype(np.float64)
        sizes = corners[:, 2:] - corners[:, :2]
        for corner, size, score, label in zip(
            corners[:, :2], sizes, row.scores, row.classes, strict=True
        ):
            annotations.append(
                {
                    "image_id": image_id,
                    "category_id": ids[label],
                    "bbox": [*corner.tolist(), *size.tolist()],
                    "score": float(score),
                }
            )
    content: Any = annotations
    if not results:
        for number, annotation in enumerate(annotations, start=1):
            width, height = annotation["bbox"][2:]
            annotation.update(id=number, area=width * height, iscrowd=0)
        categories = [{"id": i, "name": name} for i, name in zip(ids, names, strict=True)]
        content = {"images": listed, "annotations": annotations, "categories": categories}
    temporary = Path(path).with_name(f".{Path(path).name}.tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    os.replace(temporary, path)


def _load(path: Path) -> tuple[Any, str]:
    """The content of a JSON file, and the sha256 of its bytes."""
    try:
        data = path.read_bytes()
        return json.loads(data.decode("utf-8-sig")), hashlib.sha256(data).hexdigest()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _listed_by(dataset: DetectionDataset) -> list[_Image]:
    records = [dataset[index] for index in range(len(dataset))]
    unknown = [record.key for record in records if record.height < 1]
    if unknown:
        raise ValueError(
            f"the sizes of {len(unknown)} images of {dataset.name} are not known, the first is "
            f"'{unknown[0]}': a list of results needs a data set with sizes"
        )
    return [_Image(r.image_id, r.key, r.height, r.width) for r in records]


def _categories_of(dataset: DetectionDataset) -> dict[Any, str]:
    return dict(zip(dataset.category_ids, dataset.class_names, strict=True))


def _listed_in(
    content: Any, path: Path, dataset: DetectionDataset | None
) -> tuple[list[_Image], dict[Any, str]]:
    """Images and categories (id -> name, ascending) of a full COCO file.

    Raises:
        ValueError: names the file and what is missing.
    """
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        kind = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} is no COCO file: expected a dict with 'images', got {kind}")
    for what, needed in _NEEDED.items():
        entries = content.setdefault(what, [])
        for entry in entries:
            for name in needed:
                if not isinstance(entry, dict) or name not in entry:
                    raise ValueError(
                        f"{path}: one of the {what} lacks '{name}': {str(entry)[:200]}"
                    )
        twice = [i for i, count in Counter(entry["id"] for entry in entries).items() if count > 1]
        if twice:
            raise ValueError(f"{path}: id {twice[0]} is there twice among the {what}")
    categories = sorted(content["categories"], key=lambda category: category["id"])
    names = [image["file_name"] for image in content["images"]]
    keys = names if dataset is None else _keys_of(names, dataset, path)
    images = [
        _Image(image["id"], key, image["height"], image["width"])
        for image, key in zip(content["images"], keys, strict=True)
    ]
    return images, {category["id"]: category["name"] for category in categories}


def _keys_of(names: Sequence[str], dataset: DetectionDataset, path: Path) -> list[str]:
    """The data set's key of each file name: equal, or the only one that ends with it."""
    keys = set(dataset.keys())
    ending: defaultdict[str, list[str]] = defaultdict(list)
    for key in keys:
        parts = key.split("/")
        for start in range(len(parts)):
            ending["/".join(parts[start:])].append(key)
    found = []
    for name in names:
        fitting = [name] if name in keys else ending[name]
        if len(fitting) != 1:
            raise ValueError(
                f"{path}: image '{name}' fits {len(fitting)} images of {dataset.name}"
                + (f": {sorted(fitting)[:3]}" if fitting else f" (which has '{dataset.key(0)}')")
            )
        found += fitting
    return found


def _rows(
    listed: Sequence[_Image], category_ids: Sequence[Any], annotations: list[Any], source: str
) -> list[BoxRow]:
    label_of = {category: label for label, category in enumerate(category_ids)}
    images = {image.image_id: image for image in listed}
    found: dict[Any, list[tuple[list[float], float, int]]] = defaultdict(list)
    left_out: Counter[str] = Counter()
    for number, annotation in enumerate(annotations):
        try:
            image = images[annotation["image_id"]]
            label = label_of[annotation["category_id"]] if label_of else 0
            box = np.asarray(annotation["bbox"], dtype=np.float64).reshape(4)
            score = float(annotation.get("score", 1.0))
            crowd = bool(annotation.get("iscrowd", 0))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{source}: annotation {number} is not usable ({type(error).__name__}: {error}): "
                "expected a listed image_id, a listed category_id and bbox [x, y, w, h], got "
                f"{str(annotation)[:200]}"
            ) from error
        limits = np.asarray([image.width, image.height], dtype=np.float64)
        start, end = np.clip(box[:2], 0, limits), np.clip(box[:2] + box[2:], 0, limits)
        if crowd:
            left_out["crowd regions"] += 1
        elif not (np.isfinite(box).all() and np.isfinite(score)):
            left_out["boxes that are not finite"] += 1
        elif not (end > start).all():
            left_out["boxes without area inside their image"] += 1
        else:
            found[image.image_id].append(([*start, *end], score, label))
    for reason, count in left_out.items():
        logger.warning("%s: left out %d %s", source, count, reason)
    return [_row(image, found[image.image_id]) for image in listed]


def _row(image: _Image, found: list[tuple[list[float], float, int]]) -> BoxRow:
    best_first = sorted(found, key=lambda box: -box[1])
    return BoxRow(
        key=image.key,
        height=image.height,
        width=image.width,
        boxes=np.asarray([box for box, _, _ in best_first], dtype=np.float32).reshape(-1, 4),
        scores=np.asarray([score for _, score, _ in best_first], dtype=np.float32),
        classes=np.asarray([label for _, _, label in best_first], dtype=np.int64),
    )
