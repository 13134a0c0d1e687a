"""Dropout whose random numbers cost little on a CPU (Srivastava et al., 2014)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_LEVELS = 2**16  # probabilities are rounded to 1 / _LEVELS on a CPU


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Zeros in place of some numbers, and the others divided by their share.

    `F.dropout` on a CPU draws a 64-bit number for each element and keeps its mask in the dtype of
    `x`; both weigh more than the rest of a transformer's element-wise work. Here 16 bits decide, an
    eighth of the time, and the mask has one byte an element. The expectation is exact: what is kept
    is divided by the share that 16 bits can mean. Elsewhere, and in compiled code, which has random
    numbers of its own, this is `F.dropout`.

    Args:
        x: of any shape.
        probability: of a zero; on a CPU rounded to a multiple of 2^-16.
        training: else nothing is done.
    """
    if not training or probability == 0:
        return x
    if not draws_cheaply(x):
        return F.dropout(x, probability)
    return _Dropout.apply(x, probability)


def add_dropout(x: Tensor, update: Tensor, probability: float, training: bool) -> Tensor:
    """x + dropout(update, probability, training), without a tensor between the two."""
    if not training or probability == 0 or not draws_cheaply(x):
        return x + dropout(update, probability, training)
    return _AddDropout.apply(x, update, probability)


def draws_cheaply(x: Tensor) -> bool:
    """Whether dropout of `x` is not `F.dropout`."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        keep, ctx.scale = _draw(x.shape, probability)
        ctx.save_for_backward(keep)
        return keep.to(x.dtype).mul_(x).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return keep.to(grad.dtype).mul_(grad).mul_(ctx.scale), None


class _AddDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, update: Tensor, probability: float) -> Tensor:
        keep, ctx.scale = _draw(update.shape, probability)
        ctx.save_for_backward(keep)
        ctx.dtypes = x.dtype, update.dtype
        sum_dtype = torch.promote_types(*ctx.dtypes)
        return keep.to(sum_dtype).mul_(update).mul_(ctx.scale).add_(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (keep,) = ctx.saved_tensors
        dropped = keep.to(grad.dtype).mul_(grad).mul_(ctx.scale)
        return grad.to(ctx.dtypes[0]), dropped.to(ctx.dtypes[1]), None


def _draw(shape: torch.Size, probability: float) -> tuple[Tensor, float]:
    """Bytes of 1 where numbers are kept and 0 elsewhere, and what makes up for those dropped."""
    kept = round((1 - probability) * _LEVELS)
    count = shape.numel()
    if kept == 0:
        return torch.zeros(shape, dtype=torch.uint8), 0.0
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    draws = words.view(torch.int16)[:count]  # uniform in [-_LEVELS / 2, _LEVELS / 2)
    # Compared in place, for then PyTorch does it on whole vectors.
    keep = draws.le_(kept - _LEVELS // 2 - 1).to(torch.uint8)
    return keep.view(shape), _LEVELS / kept
