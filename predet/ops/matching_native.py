"""The native matching, as the operators `torch.ops.predet.match` and `linear_sum_assignment`.

Callers use `predet.ops.matching`, which holds the meaning, the legend of shapes and the references.
Here is what turns the loops of csrc/hungarian into operators of torch: checks, memory, and shapes
for tracing. Both return integers, so there is nothing to differentiate.

dtypes: logits are fp32, bf16 or fp16; boxes and target boxes fp32; classes int64. Costs to assign
are fp32 or fp64.

On CUDA everything stays on the device and nothing waits for it: the counts of targets go with the
kernels' arguments, and results and counts of non-finite costs are device tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from predet.ops import extension

_LIBRARY = torch.library.Library("predet", "FRAGMENT")
_LIBRARY.define(
    "match(Tensor logits, Tensor boxes, Tensor target_classes, Tensor target_boxes, "
    "SymInt[] counts, SymInt copies, bool softmax, float[] weights) -> (Tensor, Tensor)"
)
_LIBRARY.define("linear_sum_assignment(Tensor cost, SymInt[] counts) -> (Tensor, Tensor)")
_match_operator = torch.ops.predet.match.default
_assign_operator = torch.ops.predet.linear_sum_assignment.default

_LOGITS = (torch.float32, torch.bfloat16, torch.float16)
_COSTS = (torch.float32, torch.float64)


def match_native(
    logits: Tensor,
    boxes: Tensor,
    target_classes: Tensor,
    target_boxes: Tensor,
    counts: Sequence[int],
    copies: int,
    softmax: bool,
    weights: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """The operator, with its inputs brought to the dtypes that it takes.

    weights: class_cost, bbox_cost, giou_cost, focal_alpha, focal_gamma.

    Returns:
        (L, copies * M) the query of each target or -1, and (L, B) the number of costs that were not
        finite, both int64.
    """
    if logits.dtype not in _LOGITS:
        logits = logits.float()
    return _match_operator(
        logits.detach(),
        boxes.detach().float(),
        target_classes.long(),
        target_boxes.detach().float(),
        list(counts),
        copies,
        softmax,
        [float(weight) for weight in weights],
    )


def linear_sum_assignment_native(cost: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The operator: (L, M) the query of each target or -1, and (L, B) how many costs were bad."""
    if cost.dtype not in _COSTS:
        cost = cost.double()
    return _assign_operator(cost.detach(), list(counts))


def _match(
    logits: Tensor,
    boxes: Tensor,
    target_classes: Tensor,
    target_boxes: Tensor,
    counts: Sequence[int],
    copies: int,
    softmax: bool,
    weights: Sequence[float],
) -> tuple[Tensor, Tensor]:
    _check_match(logits, boxes, target_classes, target_boxes, counts, weights)
    logits, boxes = _dense_last(logits), _dense_last(boxes)
    target_classes, target_boxes = target_classes.contiguous(), target_boxes.contiguous()
    native = extension.native()
    sizes = (*logits.shape, copies)
    results = _new_results(logits, counts, copies)
    workspace = None
    if logits.is_cuda:
        workspace = _workspace(logits, native.hungarian_match_workspace(sizes, counts))
    tensors = (logits, boxes, target_classes, target_boxes, *results, workspace)
    native.hungarian_match(
        extension.place(logits),
        sizes,
        counts,
        extension.DTYPE_CODES[logits.dtype],
        (*logits.stride()[:3], *boxes.stride()[:3]),
        tuple(weights),
        softmax,
        [0 if tensor is None else tensor.data_ptr() for tensor in tensors],
    )
    return results


def _assign(cost: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    _check_cost(cost, counts)
    cost = _dense_last(cost)
    native = extension.native()
    sizes = (cost.shape[0], len(counts), cost.shape[2])
    code = extension.DTYPE_CODES[cost.dtype]
    results = _new_results(cost, counts, 1)
    workspace = None
    if cost.is_cuda:
        workspace = _workspace(cost, native.hungarian_assign_workspace(sizes, counts, code))
    native.hungarian_assign(
        extension.place(cost),
        sizes,
        counts,
        code,
        cost.stride()[:2],
        [0 if x is None else x.data_ptr() for x in (cost, *results, workspace)],
    )
    return results


def _dense_last(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _workspace(like: Tensor, num_bytes: int) -> Tensor:
    return like.new_empty(num_bytes, dtype=torch.uint8)


def _new_results(like: Tensor, counts: Sequence[int], copies: int) -> tuple[Tensor, Tensor]:
    layers = like.shape[0]
    query_of_target = like.new_empty(layers, copies * sum(counts), dtype=torch.int64)
    return query_of_target, like.new_empty(layers, len(counts), dtype=torch.int64)


def _check_match(
    logits: Tensor,
    boxes: Tensor,
    target_classes: Tensor,
    target_boxes: Tensor,
    counts: Sequence[int],
    weights: Sequence[float],
) -> None:
    if logits.ndim != 4 or logits.dtype not in _LOGITS:
        raise ValueError(
            "match: logits must be (L, B, Q, K) in fp32, bf16 or fp16, "
            f"got {tuple(logits.shape)} in {logits.dtype}"
        )
    if len(counts) != logits.shape[1]:
        raise ValueError(f"match: {logits.shape[1]} images, but {len(counts)} target counts")
    if len(weights) != 5:
        raise ValueError(f"match: five weights expected, got {len(weights)}")
    total = sum(counts)
    wanted = {
        "boxes": (boxes, (*logits.shape[:3], 4), torch.float32),
        "target boxes": (target_boxes, (total, 4), torch.float32),
        "target classes": (target_classes, (total,), torch.int64),
    }
    for name, (tensor, shape, dtype) in wanted.items():
        if tensor.shape != shape or tensor.dtype != dtype or tensor.device != logits.device:
            raise ValueError(
                f"match: {name} must be {tuple(shape)} in {dtype} on {logits.device}, got "
                f"{tuple(tensor.shape)} in {tensor.dtype} on {tensor.device}"
            )


def _check_cost(cost: Tensor, counts: Sequence[int]) -> None:
    if cost.ndim != 3 or cost.dtype not in _COSTS:
        raise ValueError(
            "linear_sum_assignment: cost must be (L, M, Q) in fp32 or fp64, "
            f"got {tuple(cost.shape)} in {cost.dtype}"
        )
    if sum(counts) != cost.shape[1]:
        raise ValueError(
            f"linear_sum_assignment: cost has {cost.shape[1]} targets, but counts "
            f"{list(counts)} sum {sum(counts)}"
        )


def _fake_match(
    logits: Tensor,
    boxes: Tensor,
    target_classes: Tensor,
    target_boxes: Tensor,
    counts: Sequence[int],
    copies: int,
    softmax: bool,
    weights: Sequence[float],
) -> tuple[Tensor, Tensor]:
    _check_match(logits, boxes, target_classes, target_boxes, counts, weights)
    return _new_results(logits, counts, copies)


def _fake_assign(cost: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    _check_cost(cost, counts)
    return _new_results(cost, counts, 1)


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("match", _match, _device)
    _LIBRARY.impl("linear_sum_assignment", _assign, _device)
torch.library.register_fake("predet::match", _fake_match, lib=_LIBRARY)
torch.library.register_fake("predet::linear_sum_assignment", _fake_assign, lib=_LIBRARY)
