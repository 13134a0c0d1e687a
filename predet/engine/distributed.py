"""What the processes of a run do together."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from predet.d2 import comm

T = TypeVar("T")


def seed_all(seed: int, *place: int) -> None:
    """Seed Python, NumPy and torch (every device) as a pure function of `(seed, *place)`.

    Each optimiser step calls this with its own number and rank, so that no generator's state has
    to be saved to go on exactly.
    """
    words = np.random.SeedSequence([seed, *place]).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002 - libraries that draw from the global generator
    torch.manual_seed(int(words[2]) << 32 | int(words[3]))


def max_over_ranks(values: Tensor) -> Tensor:
    """Elementwise maximum over all processes; `values` lies on the training device."""
    if comm.get_world_size() > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def from_main(value: T) -> T:
    """The value that rank 0 has, on every rank."""
    return comm.all_gather(value)[0]


def raise_together(problem: str | None) -> None:
    """Raise one ValueError on every process if any of them has a problem."""
    problems = [text for text in comm.all_gather(problem) if text]
    if problems:
        raise ValueError(problems[0])


def gather_lines(value: Any) -> list[tuple[int, Any]]:
    """`(rank, value)` of every rank that gives something other than None."""
    gathered: Sequence[Any] = comm.all_gather(value)
    return [(rank, item) for rank, item in enumerate(gathered) if item is not None]


def broadcast_buffers(module: nn.Module) -> None:
    """Give every rank the buffers of rank 0 (running statistics differ between ranks)."""
    if comm.get_world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)
