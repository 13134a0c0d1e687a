"""Losses over the batch of all processes: tensors of every rank, with their gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from predet.d2 import comm


def gather_batch(tensor: Tensor) -> Tensor:
    """Concatenate the ranks' tensors (B, ...) in order of rank -> (B * ranks, ...).

    Every rank computes the same loss from the result. The gradients that its backward pass brings
    to a rank are the sum over the ranks, which the averaging of DistributedDataParallel divides
    again, so that the step is that of one process with the whole batch. B must be the same on all
    ranks.
    """
    if comm.get_world_size() == 1:
        return tensor
    return _Gather.apply(tensor)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(comm.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.chunk(comm.get_world_size())[comm.get_rank()]
