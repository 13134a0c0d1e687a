"""Precision and recall of the best k boxes an image: how good pseudo-labels would be as targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from predet.data.box_store import BoxStore
from predet.data.dataset import DetectionDataset
from predet.evaluation.overlap import area, intersection, iou

CROWD_COVER = 0.5  # a box with this share of its area in a crowd region is neither hit nor miss


class BoxQuality(NamedTuple):
    """Fractions in [0, 1]; NaN where there are no boxes, or nothing to find."""

    top_k: int
    boxes_per_image: float  # that count: at most k, without those in crowd regions
    precision: float  # share of them that match an object
    recall: float  # share of the objects that are matched
    precision_any_class: float  # the same, whatever the class
    recall_any_class: float


class LabelledBoxes(NamedTuple):
    """Predicted and true boxes of one image, absolute xyxy. N predictions, M objects."""

    boxes: np.ndarray  # (N, 4)
    scores: np.ndarray  # (N,)
    classes: np.ndarray  # (N,)
    true_boxes: np.ndarray  # (M, 4)
    true_classes: np.ndarray  # (M,)
    iscrowd: np.ndarray  # (M,) bool


def box_quality(
    images: Sequence[LabelledBoxes],
    *,
    top_k: Sequence[int] = (30, 60, 100),
    iou_threshold: float = 0.5,
) -> list[BoxQuality]:
    """Match the best k boxes of each image to its objects, best score first, each object once.

    A box takes the free object that it overlaps most, if the IoU reaches the threshold; class-aware
    only among the objects of its class. Crowd regions are no objects, and boxes that lie in one
    and match nothing do not count.
    """
    largest = max(top_k)
    # (2, boxes so far) for class-aware and for any class: hit, counts; objects are counted once.
    hits: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    objects = 0
    for image in images:
        order = np.argsort(-image.scores, kind="stable")[:largest]
        real = ~image.iscrowd
        objects += int(real.sum())
        overlap = iou(image.boxes[order].astype(np.float64), image.true_boxes[real])
        same = image.classes[order][:, None] == image.true_classes[real][None, :]
        hit = np.stack(
            [_match(np.where(same, overlap, 0.0), iou_threshold), _match(overlap, iou_threshold)]
        )
        inside = _in_crowd(image.boxes[order].astype(np.float64), image.true_boxes[image.iscrowd])
        hits.append(hit)
        counts.append(hit | ~inside[None, :])
    return [_at(k, hits, counts, objects) for k in top_k]


def store_quality(
    store: BoxStore,
    dataset: DetectionDataset,
    *,
    top_k: Sequence[int] = (30, 60, 100),
    score_threshold: float = 0.0,
    iou_threshold: float = 0.5,
) -> list[BoxQuality]:
    """`box_quality` of a store's boxes against the annotations of a data set.

    Classes are compared by name; an object of a class that the store does not know can only be
    found whatever the class. Images that the store lacks are left out.
    """
    names = list(store.class_names or ())
    label_of = np.asarray([names.index(n) if n in names else -1 for n in dataset.class_names], int)
    images = []
    for record in (dataset[index] for index in range(len(dataset))):
        if record.key not in store:
            continue
        row = store[record.key]
        taken = row.scores >= score_threshold
        images.append(
            LabelledBoxes(
                boxes=row.boxes[taken],
                scores=row.scores[taken],
                classes=row.classes[taken],
                true_boxes=record.boxes,
                true_classes=label_of[record.classes],
                iscrowd=record.iscrowd,
            )
        )
    return box_quality(images, top_k=top_k, iou_threshold=iou_threshold)


def _match(overlap: np.ndarray, threshold: float) -> np.ndarray:
    """Which boxes match an object, greedily by row. (N, M) IoU -> (N,) bool."""
    overlap = overlap.copy()
    matched = np.zeros(len(overlap), dtype=bool)
    if overlap.shape[1] == 0:
        return matched
    for row in range(len(overlap)):
        best = overlap[row].argmax()
        if overlap[row, best] >= threshold:
            matched[row] = True
            overlap[:, best] = -1.0
    return matched


def _in_crowd(boxes: np.ndarray, crowds: np.ndarray) -> np.ndarray:
    """Which boxes lie in a crowd region by more than half. -> (N,) bool"""
    if not len(crowds):
        return np.zeros(len(boxes), dtype=bool)
    covered = intersection(boxes, crowds.astype(np.float64)).max(axis=1)
    return covered > CROWD_COVER * area(boxes)


def _at(k: int, hits: list[np.ndarray], counts: list[np.ndarray], objects: int) -> BoxQuality:
    """Sums over the best k boxes of each image; two values each: class-aware, any class."""
    found = sum((hit[:, :k].sum(axis=1) for hit in hits), np.zeros(2))
    boxes = sum((count[:, :k].sum(axis=1) for count in counts), np.zeros(2))
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = (found / boxes).tolist(), (found / objects).tolist()
    return BoxQuality(
        top_k=k,
        boxes_per_image=float(boxes[1] / len(hits)) if hits else float("nan"),
        precision=precision[0],
        recall=recall[0],
        precision_any_class=precision[1],
        recall_any_class=recall[1],
    )
