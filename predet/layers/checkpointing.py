"""Activation checkpointing: memory for time (Chen et al., Sublinear Memory Cost, 2016)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")

# Whether this is within a block whose activations are not kept.
_inside: ContextVar[bool] = ContextVar("inside", default=False)


def run_block(block: Callable[..., Result], *inputs: Any, checkpointing: bool) -> Result:
    """`block(*inputs)`; with `checkpointing` its activations are computed again in the backward.

    Losses and gradients are the same to the bit: the second forward draws the same random numbers
    (dropout, drop path) in the same autocast state, and does not count the batch again in the
    running statistics of batch normalisation. Without gradients nothing changes; neither do blocks
    within such a block.

    Args:
        block: a module, or a function whose modules are among its arguments.
        inputs: its arguments.
        checkpointing: the option.
    """
    if not (checkpointing and torch.is_grad_enabled()):
        return block(*inputs)
    parts = [part for part in (block, *inputs) if isinstance(part, nn.Module)]
    batch_norms = [m for part in parts for m in part.modules() if isinstance(m, _BatchNorm)]
    if not torch.compiler.is_compiling():
        if _inside.get():
            return block(*inputs)
        inputs = (block, *inputs)
        block = _run_inside
    if not batch_norms:
        return checkpoint(block, *inputs, use_reentrant=False)

    def contexts() -> tuple[Any, Any]:
        return contextlib.nullcontext(), _without_statistics(batch_norms)

    return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


def _run_inside(block: Callable[..., Result], *inputs: Any) -> Result:
    token = _inside.set(True)
    try:
        return block(*inputs)
    finally:
        _inside.reset(token)


@contextlib.contextmanager
def _without_statistics(batch_norms: list[nn.Module]) -> Iterator[None]:
    """Normalise by the batch as before, but let it move no running statistics."""
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in batch_norms]
    for norm in batch_norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count
