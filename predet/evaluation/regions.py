"""How well features tell annotated regions apart: nearest neighbours among region crops.

The measure of a backbone before any detector is trained on it: crops of the true boxes of one set
are the memory, those of another the queries, and a query gets the class that most of its k nearest
neighbours have. The memory holds the same number of crops of every class (as far as there are
so many), and the balanced accuracy is the mean of the classes' recalls; so chance is one divided
by the number of classes, however uneven the classes are. Raw pixels and colour histograms are the
features to beat, besides a backbone with random weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from predet.data.dataset import DetectionDataset
from predet.data.images import read_image

_SMALLEST_SIDE = 4  # pixels of a region in its image; less shows nothing


class Regions(NamedTuple):
    """Square crops of annotated boxes. N regions, S pixels a side."""

    crops: np.ndarray  # (N, S, S, 3) uint8 RGB
    classes: np.ndarray  # (N,) int64


def region_crops(
    dataset: DetectionDataset, *, size: int, max_per_class: int | None, seed: int
) -> Regions:
    """Cut out the true boxes and resize them to squares, whatever their shape.

    Crowds and boxes below 4 pixels a side are left out.

    Args:
        size: side of the crops in pixels.
        max_per_class: so many regions of each class, drawn by `seed`; None for all.

    Raises:
        ValueError: the data set has no region to cut out.
        BadSampleError: an image cannot be read.
    """
    sides = dataset.boxes[:, 2:] - dataset.boxes[:, :2]
    usable = np.flatnonzero(~dataset.iscrowd & (sides >= _SMALLEST_SIDE).all(axis=1))
    if not len(usable):
        raise ValueError(
            f"data set {dataset.name!r} ({dataset.root}) has no annotated box of at least "
            f"{_SMALLEST_SIDE} pixels a side, so no region can be compared"
        )
    rows = _draw_per_class(usable, dataset.classes[usable], max_per_class, seed)
    crops = np.empty((len(rows), size, size, 3), np.uint8)
    owners = np.searchsorted(dataset.offsets, rows, side="right") - 1
    for index in np.unique(owners):
        image = read_image(dataset[int(index)].path)
        for position in np.flatnonzero(owners == index):
            crops[position] = _crop(image, dataset.boxes[rows[position]], size)
    return Regions(crops, dataset.classes[rows].astype(np.int64))


def encoded(
    crops: np.ndarray, encode: Callable[[Tensor], Tensor], *, batch_size: int = 64
) -> np.ndarray:
    """Features of crops by a network, without gradients.

    Args:
        encode: (B, 3, S, S) uint8 RGB -> (B, D).

    Returns:
        (N, D) float32.

    Raises:
        ValueError: a feature is not finite.
    """
    parts = []
    with torch.no_grad():
        for start in range(0, len(crops), batch_size):
            part = torch.from_numpy(crops[start : start + batch_size]).permute(0, 3, 1, 2)
            parts.append(encode(part.contiguous()).float().cpu().numpy())
    features = np.concatenate(parts)
    broken = int((~np.isfinite(features).all(axis=1)).sum())
    if broken:
        raise ValueError(
            f"features of {broken} of {len(features)} regions are not finite: the weights of this "
            "encoder are broken"
        )
    return features


def raw_pixels(crops: np.ndarray, *, side: int = 16) -> np.ndarray:
    """The crops themselves, `side` pixels wide. -> (N, side * side * 3) float32"""
    small = [cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA) for crop in crops]
    return np.stack(small).reshape(len(crops), -1).astype(np.float32)


def color_histograms(crops: np.ndarray, *, bins: int = 6) -> np.ndarray:
    """Square roots of the shares of RGB cells; `bins` cells a channel. -> (N, bins**3) float32"""
    cells = (crops.astype(np.int64) * bins) // 256  # (N, S, S, 3)
    flat = ((cells[..., 0] * bins + cells[..., 1]) * bins + cells[..., 2]).reshape(len(crops), -1)
    counts = np.stack([np.bincount(row, minlength=bins**3) for row in flat])
    return np.sqrt(counts / flat.shape[1]).astype(np.float32)


def knn_classes(
    memory: np.ndarray, memory_classes: np.ndarray, queries: np.ndarray, *, k: int = 10
) -> np.ndarray:
    """The class that most of the k nearest have; among equals the one that is nearer in sum.

    Near means by the cosine of the angle between features after the memory's mean was subtracted.

    Args:
        memory: (M, D) with `memory_classes` (M,).
        queries: (Q, D).

    Returns:
        (Q,) classes.

    Raises:
        ValueError: the memory is smaller than k.
    """
    if not 1 <= k <= len(memory):
        raise ValueError(f"k must lie in [1, {len(memory)}], the regions in memory, got {k}")
    mean = memory.mean(axis=0, dtype=np.float64)
    similarity = _unit(queries - mean) @ _unit(memory - mean).T  # (Q, M)
    nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    labels = np.unique(memory_classes)
    chosen = memory_classes[nearest]
    close = np.take_along_axis(similarity, nearest, axis=1)
    votes = np.stack([(chosen == label).sum(axis=1) for label in labels], axis=1)
    # A cosine is at most 1: in parts of 2k + 1 it never outweighs a vote.
    tie = np.stack([(close * (chosen == label)).sum(axis=1) for label in labels], axis=1)
    return labels[(votes + tie / (2 * k + 1)).argmax(axis=1)]


def balanced_accuracy(predicted: np.ndarray, true: np.ndarray) -> float:
    """Mean over the classes that occur in `true` of the share that is predicted right."""
    return float(np.mean([(predicted[true == c] == c).mean() for c in np.unique(true)]))


def _draw_per_class(
    rows: np.ndarray, classes: np.ndarray, most: int | None, seed: int
) -> np.ndarray:
    order = rows[np.random.default_rng(seed).permutation(len(rows))]
    if most is None:
        return np.sort(rows)
    class_of = dict(zip(rows.tolist(), classes.tolist(), strict=True))
    taken: dict[int, list[int]] = {}
    for row in order.tolist():
        group = taken.setdefault(class_of[row], [])
        if len(group) < most:
            group.append(row)
    return np.sort(np.concatenate([np.asarray(group) for group in taken.values()]))


def _crop(image: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    """The whole pixels that a box touches, as a square of `size` pixels."""
    limits = np.array([image.shape[1], image.shape[0]])
    left, top = np.clip(np.floor(box[:2]), 0, limits - 1).astype(int)
    right, bottom = np.clip(np.ceil(box[2:]), (left + 1, top + 1), limits).astype(int)
    window = image[top:bottom, left:right]
    shrunk = size / max(window.shape[:2])
    return cv2.resize(
        window, (size, size), interpolation=cv2.INTER_AREA if shrunk < 0.5 else cv2.INTER_LINEAR
    )


def _unit(features: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norms, 1e-12)
