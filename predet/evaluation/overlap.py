"""Overlap of boxes on NumPy arrays. N and M boxes, absolute xyxy."""

from __future__ import annotations

import numpy as np


def intersection(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Area of the intersection of each pair, (N, M)."""
    start = np.maximum(boxes[:, None, :2], others[None, :, :2])
    end = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.clip(end - start, 0, None).prod(axis=2)


def area(boxes: np.ndarray) -> np.ndarray:
    """Area of each box, (N,)."""
    return (boxes[:, 2:] - boxes[:, :2]).clip(0, None).prod(axis=1)


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of each pair, (N, M); 0 for two boxes without area."""
    common = intersection(boxes, others)
    union = area(boxes)[:, None] + area(others)[None, :] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)
