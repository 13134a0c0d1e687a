"""Talk between processes; works alike, at no cost, if there is one. As `detectron2.utils.comm`."""

from __future__ import annotations

import functools
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

# Of exchanges in main memory: one process may evaluate or save for hours while others wait here.
PATIENCE = timedelta(days=1)

_local_group: dist.ProcessGroup | None = None


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    return dist.get_world_size() if _initialized() else 1


def get_rank() -> int:
    return dist.get_rank() if _initialized() else 0


def is_main_process() -> bool:
    return get_rank() == 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """Group the ranks of each machine. `launch` does it; all processes must call it together.

    Raises:
        ValueError: the world size is not a multiple of the number of processes per machine.
    """
    global _local_group
    world_size = get_world_size()
    if num_workers_per_machine < 1 or world_size % num_workers_per_machine:
        raise ValueError(
            f"{world_size} processes cannot be divided into machines of {num_workers_per_machine}"
        )
    for first in range(0, world_size, num_workers_per_machine):
        ranks = list(range(first, first + num_workers_per_machine))
        group = dist.new_group(ranks)  # every process takes part in making every group
        if get_rank() in ranks:
            _local_group = group


def get_local_process_group() -> dist.ProcessGroup:
    """The processes of this machine."""
    if _local_group is None:
        raise RuntimeError(
            "there is no process group of this machine: start processes with launch(), or call "
            "comm.create_local_process_group() after torch.distributed.init_process_group()"
        )
    return _local_group


def get_local_rank() -> int:
    return dist.get_rank(get_local_process_group()) if _initialized() else 0


def get_local_size() -> int:
    return dist.get_world_size(get_local_process_group()) if _initialized() else 1


def synchronize() -> None:
    """Wait until all processes are here, however long that takes."""
    if get_world_size() == 1:
        return
    dist.barrier(group=_patient_group())


def _patient_group() -> dist.ProcessGroup:
    """All ranks, in main memory, with patience instead of the timeout of gradients."""
    return _make_patient_group(dist.group.WORLD)


@functools.cache
def _make_patient_group(world: dist.ProcessGroup) -> dist.ProcessGroup:
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def all_gather(data: Any, group: dist.ProcessGroup | None = None) -> list:
    """Everybody's `data` (anything that can be pickled), ordered by rank, on every rank."""
    if get_world_size() == 1:
        return [data]
    group = group or _patient_group()
    gathered: list = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: Any, dst: int = 0, group: dist.ProcessGroup | None = None) -> list:
    """Everybody's `data`, ordered by rank, on rank `dst`; an empty list on the others."""
    if get_world_size() == 1:
        return [data]
    group = group or _patient_group()
    gathered: list | None = None
    if dist.get_rank() == dst:
        gathered = [None] * dist.get_world_size(group)
    dist.gather_object(data, gathered, dst=dst, group=group)
    return gathered or []


def shared_random_seed() -> int:
    """A number in [0, 2**31) that is the same on all ranks and new each time."""
    return all_gather(int(np.random.default_rng().integers(2**31)))[0]


@torch.no_grad()
def reduce_dict(input_dict: dict[str, Tensor], average: bool = True) -> dict[str, Tensor]:
    """Mean, or sum, over ranks of scalar tensors; only rank 0 gets the result.

    The keys must be the same on all ranks; they come back sorted. The other ranks get values that
    mean nothing.
    """
    world_size = get_world_size()
    if world_size == 1:
        return input_dict
    names = sorted(input_dict)
    values = torch.stack([input_dict[name] for name in names])
    dist.reduce(values, dst=0)
    if average and is_main_process():
        values /= world_size
    return dict(zip(names, values, strict=True))
