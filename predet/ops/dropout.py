"""Dropout (Srivastava et al., 2014) in one pass over the numbers.

`F.dropout` on a CPU draws a 64-bit number for each element in one thread and keeps its mask in the
dtype of the data: in a transformer that takes longer than all other element-wise work, and much
memory. Here a call draws one seed from torch's generator, and number i is kept if 16 bits of a
hash of (seed, i) say so (SplitMix64; csrc/dropout). So nothing but the seed is kept for the
backward pass, and the result is the same for any number of threads and with or without the native
extension. Probabilities are rounded to multiples of 2^-16; the expectation is exact, for what is
kept is divided by the share that 16 bits can mean.

Elsewhere than on a CPU, and in compiled code, which has random numbers of its own, all this is
`F.dropout`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from predet.ops import extension

_LEVELS = 2**16
# SplitMix64's, as signed numbers: torch multiplies int64 modulo 2^64.
_GAMMA, _FIRST, _SECOND = (
    constant - 2**64 for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Zeros in place of some numbers, and the others divided by their share.

    Args:
        x: of any shape and floating dtype.
        probability: of a zero.
        training: else nothing is done.
    """
    if not training or probability == 0:
        return x
    if not draws_cheaply(x):
        return F.dropout(x, probability)
    return _Dropout.apply(x, probability, _draw_seed())


def add_dropout(x: Tensor, update: Tensor, probability: float, training: bool) -> Tensor:
    """x + dropout(update, probability, training), without a tensor between the two."""
    if not training or probability == 0 or not draws_cheaply(x):
        return x + dropout(update, probability, training)
    dtype = torch.promote_types(x.dtype, update.dtype)
    return _AddDropout.apply(x.to(dtype), update.to(dtype), probability, _draw_seed())


def relu_dropout_(x: Tensor, probability: float, training: bool) -> Tensor:
    """dropout(relu(x), probability, training), in the memory of `x` if it is contiguous.

    For its gradient, which can be taken once, it keeps nothing but the result.
    """
    if not training or probability == 0 or not draws_cheaply(x):
        return dropout(F.relu_(x), probability, training)
    return _ReluDropout.apply(x.contiguous(), probability, _draw_seed())


def draws_cheaply(x: Tensor) -> bool:
    """Whether dropout of `x` is not `F.dropout`."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def dropout_reference(
    x: Tensor, probability: float, seed: int, base: Tensor | None = None
) -> Tensor:
    """`dropout` with the draws of a given seed, on top of `base`, in plain PyTorch."""
    kept, scale = _kept_and_scale(probability)
    index = torch.arange(1, (x.numel() + 3) // 4 + 1)
    words = index * _GAMMA + (seed if seed < 2**63 else seed - 2**64)
    words = (words ^ _shift_right(words, 30)) * _FIRST
    words = (words ^ _shift_right(words, 27)) * _SECOND
    words = words ^ _shift_right(words, 31)
    draws = words.view(torch.int16)[: x.numel()].int() & (_LEVELS - 1)
    wide = torch.promote_types(x.dtype, torch.float32)
    result = x.to(wide) * ((draws < kept).view(x.shape).to(wide) * scale)
    return (result if base is None else base.to(wide) + result).to(x.dtype)


def _shift_right(words: Tensor, bits: int) -> Tensor:
    """As of unsigned numbers."""
    return (words >> bits) & (2 ** (64 - bits) - 1)


def _kept_and_scale(probability: float) -> tuple[int, float]:
    kept = round((1 - probability) * _LEVELS)
    return kept, _LEVELS / kept if kept > 0 else 0.0


def _draw_seed() -> int:
    return int(torch.empty((), dtype=torch.int64).random_())


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float, seed: int) -> Tensor:
        ctx.draws = probability, seed
        return _run(x, *ctx.draws)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Dropout.apply(grad, *ctx.draws), None, None


class _AddDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, update: Tensor, probability: float, seed: int) -> Tensor:
        ctx.draws = probability, seed
        return _run(update, *ctx.draws, base=x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return grad, _Dropout.apply(grad, *ctx.draws), None, None


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float, seed: int) -> Tensor:
        ctx.mark_dirty(x)
        ctx.probability = probability
        ctx.save_for_backward(x)
        return _run(x, probability, seed, rectify=True, output=x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (output,) = ctx.saved_tensors
        return _run(grad, ctx.probability, 0, gate=output), None, None


def _run(
    x: Tensor,
    probability: float,
    seed: int,
    *,
    rectify: bool = False,
    base: Tensor | None = None,
    gate: Tensor | None = None,
    output: Tensor | None = None,
) -> Tensor:
    """`base` plus `x`, rectified if asked, where kept: as drawn, or where `gate` is positive."""
    if not extension.supports("dropout", x.device, x.dtype):
        return _run_reference(x, probability, seed, rectify, base, gate, output)
    kept, scale = _kept_and_scale(probability)
    x = x.contiguous()
    base = None if base is None else base.contiguous()
    if output is None:
        output = torch.empty_like(x, memory_format=torch.contiguous_format)
    extension.native().dropout(
        torch.get_num_threads(),
        x.numel(),
        extension.DTYPE_CODES[x.dtype],
        seed,
        kept,
        scale,
        rectify,
        [0 if t is None else t.data_ptr() for t in (x, base, gate, output)],
    )
    return output


def _run_reference(
    x: Tensor,
    probability: float,
    seed: int,
    rectify: bool,
    base: Tensor | None,
    gate: Tensor | None,
    output: Tensor | None,
) -> Tensor:
    if gate is not None:
        wide = torch.promote_types(x.dtype, torch.float32)
        open_gates = (~(gate <= 0)).to(wide)  # also those of NaN
        return (x.to(wide) * (open_gates * _kept_and_scale(probability)[1])).to(x.dtype)
    result = dropout_reference(x.relu() if rectify else x, probability, seed, base)
    return result if output is None else output.copy_(result)
