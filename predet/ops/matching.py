"""Bipartite matching of targets and predictions (DETR, section 3.1): costs and assignment.

An image's targets only ever meet that image's queries, so the costs are one block an image and
never the matrix of all queries against the targets of the whole batch. All decoder layers are
done in one call. Class scores are gathered for the targets' classes before anything is computed
from them.

`match` goes from predictions to pairs; `linear_sum_assignment` solves costs that are given. Both
run the loops of csrc/hungarian (registered in matching_native.py), and the references below, on
PyTorch and scipy, where those are not built or do not know the device. Costs are fp32 whatever the
autocast state, the solver's duals fp64, so assignments are optimal for the fp32 costs. The native
costs differ from `matching_cost` in the class part alone, by less than 1e-5 of its weight where a
probability is not within 1e-4 of 0 or 1; there the native ones are the more accurate. Equal costs:
the native solver prefers the query of lower index, whatever the device, processor and threads.

Layout: the targets of a batch lie one after the other, image by image; `counts` says how many each
image has. A cost block is (targets, queries): the solver is fastest with the shorter side first.

Legend: L decoder layers, B images, Q queries, K logits, M targets of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from predet.ops import extension
from predet.ops.matching_native import linear_sum_assignment_native, match_native

Classification = Literal["softmax", "focal"]

CLASSIFICATIONS: tuple[Classification, ...] = ("softmax", "focal")

# Stands for a cost that is not finite: such a pair is matched only if nothing else is left. Real
# costs are below 1e3, and the solver computes in fp64.
BAD_COST = 1e9

Array = TypeVar("Array", np.ndarray, Tensor)


class Assignment(NamedTuple):
    """Which query each target has, on the device of the predictions.

    With `copies` > 1 an image's targets come copy after copy, as if they had been repeated.
    """

    query_of_target: Tensor  # (L, copies * M) int64; -1: left over, for want of queries
    num_bad: Tensor  # (L, B) int64: costs that were not finite and counted as BAD_COST


@torch.no_grad()
def match(
    logits: Tensor,
    boxes: Tensor,
    target_classes: Tensor,
    target_boxes: Tensor,
    counts: Sequence[int],
    *,
    classification: Classification,
    class_cost: float,
    bbox_cost: float,
    giou_cost: float,
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
    copies: int = 1,
) -> Assignment:
    """Assign each target to a query of its own image at the lowest total cost, in all layers.

    The cost is that of `matching_cost`, and so are the arguments. On CUDA nothing waits for the
    device.

    Args:
        copies: how many queries each target gets (H-DETR's one-to-many matching, section 3.2).

    Raises:
        ValueError: shapes, dtypes or devices do not fit together, `classification` is unknown, or
            (but for CUDA, where such a target's costs count as bad) a class is not in [0, K).
    """
    _check(logits, boxes, target_classes, target_boxes, counts)
    _check_classification(classification)
    if copies < 1 or copies * sum(counts) >= 2**31:
        raise ValueError(
            f"matching: copies must be at least 1 and give less than 2^31 targets, got {copies}"
        )
    weights = (class_cost, bbox_cost, giou_cost, focal_alpha, focal_gamma)
    run = match_reference
    if extension.supports("matching", logits.device, logits.dtype):
        run = _match_native
    return run(logits, boxes, target_classes, target_boxes, counts, classification, weights, copies)


def match_reference(
    logits: Tensor,
    boxes: Tensor,
    target_classes: Tensor,
    target_boxes: Tensor,
    counts: Sequence[int],
    classification: Classification,
    weights: tuple[float, float, float, float, float],
    copies: int,
) -> Assignment:
    """`match` by `matching_cost` and scipy; waits for the device once."""
    image_rows = torch.arange(sum(counts)).split(list(counts))
    rows = [row for image in image_rows for row in (image,) * copies]
    index = torch.cat(rows).to(boxes.device) if rows else torch.arange(0, device=boxes.device)
    counts = [count * copies for count in counts]
    class_cost, bbox_cost, giou_cost, focal_alpha, focal_gamma = weights
    cost = matching_cost(
        logits,
        boxes,
        target_classes[index],
        target_boxes[index],
        counts,
        classification=classification,
        class_cost=class_cost,
        bbox_cost=bbox_cost,
        giou_cost=giou_cost,
        focal_alpha=focal_alpha,
        focal_gamma=focal_gamma,
    )
    clean, bad = replace_non_finite(cost.cpu().numpy())
    query_of_target = linear_sum_assignment_reference(clean, counts)
    num_bad = [part.sum(axis=1) // copies for part in np.split(bad, np.cumsum(counts)[:-1], axis=1)]
    return Assignment(
        torch.from_numpy(query_of_target).to(boxes.device),
        torch.from_numpy(np.stack(num_bad, axis=1)).to(boxes.device),
    )


def _match_native(
    logits: Tensor,
    boxes: Tensor,
    target_classes: Tensor,
    target_boxes: Tensor,
    counts: Sequence[int],
    classification: Classification,
    weights: tuple[float, float, float, float, float],
    copies: int,
) -> Assignment:
    softmax = classification == "softmax"
    return Assignment(
        *match_native(logits, boxes, target_classes, target_boxes, counts, copies, softmax, weights)
    )


def matching_cost(
    logits: Tensor,
    boxes: Tensor,
    target_classes: Tensor,
    target_boxes: Tensor,
    counts: Sequence[int],
    *,
    classification: Classification,
    class_cost: float,
    bbox_cost: float,
    giou_cost: float,
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
) -> Tensor:
    """Cost of giving each target to each query of its own image, in fp32.

    `class_cost` weighs minus the softmax probability of the target's class, or the focal cost
    of that class (Deformable DETR: the focal loss of "is" minus that of "is not"); `bbox_cost`
    the L1 distance of cxcywh; `giou_cost` minus the generalised IoU.

    Args:
        logits: (L, B, Q, K).
        boxes: (L, B, Q, 4), cxcywh in [0, 1].
        target_classes: (M,) int64 in [0, K).
        target_boxes: (M, 4), cxcywh in [0, 1], image after image.
        counts: targets of each of the B images; sums to M.

    Returns:
        (L, M, Q). What is not finite in the predictions is not finite here.

    Raises:
        ValueError: shapes do not fit together, or `classification` is unknown.
    """
    _check(logits, boxes, target_classes, target_boxes, counts)
    _check_classification(classification)
    image = torch.arange(len(counts)).repeat_interleave(torch.tensor(list(counts))).to(boxes.device)
    with torch.no_grad(), torch.autocast(boxes.device.type, enabled=False):
        if classification == "softmax":
            score = _softmax_cost(logits, image, target_classes)
        else:
            score = _focal_cost(logits, image, target_classes, focal_alpha, focal_gamma)
        l1, giou = _box_costs(boxes, image, target_boxes)
        return class_cost * score + bbox_cost * l1 + giou_cost * giou


def linear_sum_assignment(cost: Array, counts: Sequence[int]) -> Array:
    """Solve every (layer, image) block of costs for itself.

    Args:
        cost: (L, M, Q), array or tensor, finite; rows are targets, grouped by image as `counts`
            says. Computed in fp64 from fp32 or fp64; other dtypes are widened.
        counts: targets of each image; sums to M.

    Returns:
        (L, M) int64: the query of each target, -1 where an image has more targets than
        queries and this one is left over. Queries are distinct within an image.

    Raises:
        ValueError: shapes do not fit, or a cost is not finite (but for CUDA, where waiting for the
            device to tell would be needed: such a cost counts as BAD_COST).
    """
    tensor = cost if isinstance(cost, Tensor) else torch.from_numpy(np.require(cost, None, "W"))
    if tensor.ndim != 3 or sum(counts) != tensor.shape[1]:
        raise ValueError(
            f"cost must be (L, M, Q) with M = {sum(counts)} (counts {list(counts)}), got "
            f"{tuple(tensor.shape)}"
        )
    if extension.supports("matching", tensor.device, torch.float32):
        query_of_target, num_bad = linear_sum_assignment_native(tensor, counts)
        if not tensor.is_cuda and num_bad.any():
            raise ValueError(
                f"{int(num_bad.sum())} costs are not finite, the first of layer and image "
                f"{num_bad.nonzero()[0].tolist()}"
            )
    else:
        found = linear_sum_assignment_reference(tensor.detach().cpu().double().numpy(), counts)
        query_of_target = torch.from_numpy(found).to(tensor.device)
    return query_of_target if isinstance(cost, Tensor) else query_of_target.numpy()


def linear_sum_assignment_reference(cost: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """`linear_sum_assignment` of an array by scipy, block by block."""
    layers, total, _ = cost.shape
    query_of_target = np.full((layers, total), -1, dtype=np.int64)
    for layer in range(layers):
        start = 0
        for count in counts:
            rows, columns = scipy.optimize.linear_sum_assignment(cost[layer, start : start + count])
            query_of_target[layer, start + rows] = columns
            start += count
    return query_of_target


def replace_non_finite(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(L, M, Q) -> the cost with `BAD_COST` for what is not finite, and (L, M) how many there were.

    The solver would raise on them; a caller that goes on has to say that it did.
    """
    finite = np.isfinite(cost)
    if finite.all():
        return cost, np.zeros(cost.shape[:2], dtype=np.int64)
    return np.where(finite, cost, BAD_COST), (~finite).sum(axis=2)


def _softmax_cost(logits: Tensor, image: Tensor, target_classes: Tensor) -> Tensor:
    # The normaliser needs all classes, but only the targets' columns are exponentiated.
    logits = logits.float()
    normalizer = logits.logsumexp(dim=-1).index_select(1, image)  # (L, M, Q)
    return -(_gather_classes(logits, image, target_classes) - normalizer).exp()


def _focal_cost(
    logits: Tensor, image: Tensor, target_classes: Tensor, alpha: float, gamma: float
) -> Tensor:
    eps = 1e-8  # part of the published cost: it bounds the logarithm
    p = _gather_classes(logits, image, target_classes).float().sigmoid()
    positive = alpha * (1 - p) ** gamma * -(p + eps).log()
    negative = (1 - alpha) * p**gamma * -(1 - p + eps).log()
    return positive - negative


def _gather_classes(logits: Tensor, image: Tensor, target_classes: Tensor) -> Tensor:
    """(L, B, Q, K) -> (L, M, Q): for each target, its class in all queries of its image."""
    # Two index arrays with a slice between them: NumPy's rule puts their dimension first.
    return logits[:, image, :, target_classes].transpose(0, 1)


def _box_costs(boxes: Tensor, image: Tensor, target_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """L1 distance and minus GIoU, each (L, M, Q).

    One coordinate at a time: (L, M, Q) planes stay contiguous, which is several times faster than
    reducing over a last dimension of 4.
    """
    planes = boxes.float().permute(3, 0, 1, 2).index_select(2, image)  # (4, L, M, Q)
    targets = target_boxes.float().t()[:, None, :, None]  # (4, 1, M, 1)
    l1 = sum((planes[i] - targets[i]).abs() for i in range(4))
    x1, y1, x2, y2 = _corners(planes)
    tx1, ty1, tx2, ty2 = _corners(targets)
    intersection = _extent(x1.maximum(tx1), x2.minimum(tx2)).mul_(
        _extent(y1.maximum(ty1), y2.minimum(ty2))
    )
    union = planes[2] * planes[3] + targets[2] * targets[3] - intersection
    enclosing = _extent(x1.minimum(tx1), x2.maximum(tx2)).mul_(
        _extent(y1.minimum(ty1), y2.maximum(ty2))
    )
    eps = 1e-12
    giou = intersection / union.clamp(min=eps) - (enclosing - union) / enclosing.clamp(min=eps)
    return l1, -giou


def _corners(planes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    cx, cy, w, h = planes.unbind(0)
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def _extent(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp_(min=0)


def _check_classification(classification: str) -> None:
    if classification not in CLASSIFICATIONS:
        raise ValueError(f"classification must be one of {CLASSIFICATIONS}, got {classification!r}")


def _check(
    logits: Tensor,
    boxes: Tensor,
    target_classes: Tensor,
    target_boxes: Tensor,
    counts: Sequence[int],
) -> None:
    if logits.ndim != 4 or boxes.shape != (*logits.shape[:3], 4):
        raise ValueError(
            "matching: logits must be (L, B, Q, K) and boxes (L, B, Q, 4), got "
            f"{tuple(logits.shape)} and {tuple(boxes.shape)}"
        )
    if len(counts) != logits.shape[1]:
        raise ValueError(f"matching: {logits.shape[1]} images, but {len(counts)} target counts")
    total = sum(counts)
    if target_boxes.shape != (total, 4) or target_classes.shape != (total,):
        raise ValueError(
            f"matching: counts say {total} targets, got boxes {tuple(target_boxes.shape)} and "
            f"classes {tuple(target_classes.shape)}"
        )
