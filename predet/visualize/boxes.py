"""Pages of images with annotations and predictions beside each other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from predet.data.box_store import BoxRow
from predet.data.dataset import DetectionDataset, Record
from predet.data.images import BadSampleError, read_image
from predet.visualize.pictures import Panel, comparison, contact_sheet, save_png


class BoxesByKey(Protocol):
    """Boxes of images by key: a `BoxStore`, or a dict of rows."""

    def __contains__(self, key: object) -> bool: ...

    def __getitem__(self, key: str) -> BoxRow: ...


def draw_detections(
    path: str | os.PathLike[str],
    *,
    dataset: DetectionDataset,
    indices: Sequence[int],
    predictions: Mapping[str, BoxesByKey],
    class_names: Sequence[str],
    score_threshold: float = 0.0,
    top_k: int | None = None,
    title: str = "",
    columns: int = 2,
) -> Path:
    """Write one picture: images of a data set, each with its annotations and its predictions.

    Args:
        path: the PNG to write.
        dataset: images and, if it has any, annotations (drawn first).
        indices: which images.
        predictions: heading -> boxes by image key, one panel each, from left to right.
        class_names: what the classes of the predictions mean.
        score_threshold: boxes that score lower are not drawn.
        top_k: the most boxes of a panel; None draws all.
        title: line above everything.
        columns: images beside each other.

    Raises:
        ValueError: no images are asked for, or none of them can be read.
    """
    names = [*class_names, *(name for name in dataset.class_names if name not in class_names)]
    pictures, problems = [], []
    for index in indices:
        record = dataset[index]
        try:
            image = read_image(record.path)
        except BadSampleError as error:
            problems.append(str(error))
            continue
        panels = [_annotations(record, dataset, names)] if len(dataset.boxes) else []
        panels += [
            _predictions(record.key, heading, boxes, score_threshold, top_k)
            for heading, boxes in predictions.items()
        ]
        pictures.append(
            comparison(
                image,
                panels,
                class_names=names,
                title=record.key,
                panel_width=int(np.clip(2.5 * image.shape[1], 256, 480)),
            )
        )
    if not pictures:
        raise ValueError(f"no image of {dataset.name} to draw: {problems[:3] or 'none asked for'}")
    sheet = contact_sheet(pictures, columns=columns, title=title, class_names=names)
    return save_png(path, sheet)


def _annotations(record: Record, dataset: DetectionDataset, names: list[str]) -> Panel:
    label_of = np.asarray([names.index(name) for name in dataset.class_names], dtype=np.int64)
    crowds = f", {record.iscrowd.sum()} of them crowds" if record.iscrowd.any() else ""
    heading = f"annotated: {len(record.boxes)} boxes{crowds}"
    return Panel(heading, record.boxes, label_of[record.classes])


def _predictions(
    key: str, heading: str, boxes: BoxesByKey, score_threshold: float, top_k: int | None
) -> Panel:
    if key not in boxes:
        nothing = np.zeros(0)
        return Panel(f"{heading}: not there", np.zeros((0, 4)), nothing.astype(int), nothing)
    row = boxes[key]
    order = np.argsort(-row.scores, kind="stable")
    order = order[row.scores[order] >= score_threshold][:top_k]
    limits = f" with score >= {score_threshold:g}" * (score_threshold > 0)
    return Panel(
        f"{heading}: {len(order)} of {len(row.scores)} boxes{limits}",
        row.boxes[order],
        row.classes[order],
        row.scores[order],
    )
