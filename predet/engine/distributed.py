"""What the processes of a run do together."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from predet.d2.embedded import comm

T = TypeVar("T")
Batch = list[dict[str, Any]]


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


def with_step_counts(batches: list[Batch]) -> list[Batch]:
    """The same batches; every sample knows how many boxes the images of the whole step have.

    "step_counts" is (P, N) int64: a row for each part of the step (the micro-batches of rank 0,
    then those of rank 1, ...), a number for each of its images, -1 where there is none. Losses are
    normalised with it, so that they do not depend on the division into parts. Batches without
    "instances" stay as they are. All ranks must call it, each with its own batches.
    """
    counts = [[_num_boxes(sample) for sample in batch] for batch in batches]
    parts = [part for rank in comm.all_gather(counts) for part in rank]
    if any(number is None for part in parts for number in part):
        return batches
    width = max(len(part) for part in parts)
    table = torch.tensor([part + [-1] * (width - len(part)) for part in parts])
    return [[{**sample, "step_counts": table} for sample in batch] for batch in batches]


def _num_boxes(sample: Mapping[str, Any]) -> int | None:
    return len(sample["instances"]) if "instances" in sample else None


def from_main(value: T) -> T:
    """The value that rank 0 has, on every rank."""
    return comm.all_gather(value)[0]


class SharedError(ValueError):
    """An error that every process raises at the same time."""


def raise_together(problem: str | None) -> None:
    """Raise one error on every process if any of them has a problem."""
    problems = [text for text in comm.all_gather(problem) if text]
    if problems:
        raise SharedError(problems[0])


def gather_lines(value: Any) -> list[tuple[int, Any]]:
    """`(rank, value)` of every rank that gives something other than None."""
    gathered: Sequence[Any] = comm.all_gather(value)
    return [(rank, item) for rank, item in enumerate(gathered) if item is not None]


def broadcast_buffers(module: nn.Module) -> None:
    """Give every rank the buffers of rank 0 (running statistics differ between ranks)."""
    if comm.get_world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)
