"""Data sets registered in Detectron2's catalogs, read back into flat arrays."""

from __future__ import annotations

import os
from numbers import Integral
from pathlib import Path
from typing import Any

from predet.d2 import BoxMode, DatasetCatalog, MetadataCatalog
from predet.data.dataset import DetectionDataset
from predet.data.formats.builder import DatasetBuilder


def load(name: str, *, image_root: Path | None) -> DetectionDataset:
    """Read the dataset dicts of the registered data set `name`.

    Class names and category ids come from the metadata (`thing_classes`,
    `thing_dataset_id_to_contiguous_id`). Image ids that are not all whole numbers are replaced by
    positions from 1. The root is `image_root`, else that of the metadata, else the folder that
    all images have in common.

    Raises:
        ValueError: The metadata has no class names, or a dict does not fit it.
    """
    dicts: list[dict[str, Any]] = DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    class_names = getattr(metadata, "thing_classes", None)
    if class_names is None:
        raise ValueError(f"data set {name!r}: its metadata has no 'thing_classes'")
    id_map = getattr(metadata, "thing_dataset_id_to_contiguous_id", None)
    classes = range(len(class_names))
    original = {index: category for category, index in (id_map or {}).items()}
    paths = [os.path.abspath(entry["file_name"]) for entry in dicts]
    root = _choose_root(paths, image_root, getattr(metadata, "image_root", None))
    builder = DatasetBuilder(
        name=name,
        root=root,
        source=f"data set {name!r}",
        class_names=class_names,
        category_ids=[original.get(index, index) for index in classes],
    )
    ids = [entry.get("image_id") for entry in dicts]
    if not all(isinstance(image_id, Integral) for image_id in ids):
        ids = list(range(1, len(dicts) + 1))
    for entry, path, image_id in zip(dicts, paths, ids, strict=True):
        key = os.path.relpath(path, root).replace(os.sep, "/")
        image = builder.add_image(
            key=key,
            image_id=image_id,
            height=entry.get("height", 0),
            width=entry.get("width", 0),
        )
        for number, annotation in enumerate(entry.get("annotations", []), start=1):
            category = annotation["category_id"]
            if category not in classes:
                raise ValueError(
                    f"data set {name!r}: {key}: object {number} has category {category!r}, "
                    f"expected a class in [0, {len(class_names)})"
                )
            builder.add_box(
                image=image,
                box=BoxMode.convert(
                    list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS
                ),
                category=category,
                label=f"object {number}",
                iscrowd=bool(annotation.get("iscrowd", 0)),
            )
    return builder.build()


def _choose_root(paths: list[str], image_root: Path | None, known: str | None) -> str:
    if image_root is not None:
        return str(image_root)
    if known and all(path.startswith(os.path.join(os.path.abspath(known), "")) for path in paths):
        return known
    return os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else "."
