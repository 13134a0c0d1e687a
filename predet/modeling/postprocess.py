"""From raw predictions to detections in the frame of the original images.

Three rules, none with non-maximum suppression. DETR takes one detection a query; Deformable DETR
the best pairs of query and class, so that a query can give several; pseudo-labels want one a
query of a focal detector as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from predet.d2 import Boxes, Instances
from predet.modeling.outputs import DetectorOutput
from predet.ops.boxes import absolute_boxes
from predet.ops.matching import Classification


def best_per_query(
    output: DetectorOutput, sizes: Sequence[tuple[int, int]], classification: Classification
) -> list[Instances]:
    """One detection for each query of the last layer: its best class. Order is that of queries.

    Args:
        output: of the detector.
        sizes: (height, width) of each original image.
        classification: what the logits mean.

    Returns:
        Instances with `pred_boxes` (clipped to the image), `scores`, `pred_classes`.
    """
    scores, classes = class_scores(output.logits[-1], classification).max(dim=-1)
    return [
        _instances(size, *detections)
        for size, *detections in zip(sizes, output.boxes[-1], scores, classes, strict=True)
    ]


def best_pairs(
    output: DetectorOutput,
    sizes: Sequence[tuple[int, int]],
    classification: Classification,
    top_k: int,
) -> list[Instances]:
    """The `top_k` best pairs of query and class of the last layer, best first.

    Arguments and result as of `best_per_query`; fewer than `top_k` where there are fewer pairs.
    """
    scores = class_scores(output.logits[-1], classification)  # (B, Q, K)
    num_classes = scores.shape[-1]
    flat = scores.flatten(1)
    scores, pairs = flat.topk(min(top_k, flat.shape[1]), dim=1)
    queries = (pairs // num_classes)[..., None].expand(-1, -1, 4)
    boxes = output.boxes[-1].gather(1, queries)
    return [
        _instances(size, *detections)
        for size, *detections in zip(sizes, boxes, scores, pairs % num_classes, strict=True)
    ]


def class_scores(logits: Tensor, classification: Classification) -> Tensor:
    """(..., K) logits -> (..., classes) scores in fp32; softmax drops "no object", the last."""
    if classification == "softmax":
        return logits.float().softmax(dim=-1)[..., :-1]
    return logits.float().sigmoid()


def original_sizes(batch: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """(height, width) of each image before resizing; of the image itself where not told."""
    return [
        (
            int(sample.get("height", sample["image"].shape[-2])),
            int(sample.get("width", sample["image"].shape[-1])),
        )
        for sample in batch
    ]


def _instances(size: tuple[int, int], boxes: Tensor, scores: Tensor, classes: Tensor) -> Instances:
    return Instances(
        size,
        pred_boxes=Boxes(absolute_boxes(boxes.float(), size)),
        scores=scores,
        pred_classes=classes.to(torch.int64),
    )
