"""What the processes of the launch tests do; run as a script: launch_jobs.py SIDE JOB NUM_GPUS OUT.

OUT is a folder; each rank leaves what it saw in OUT/<rank>.json.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

MODULES = {
    "embedded": "predet.d2.embedded",
    "detectron2": "predet.d2.upstream",
    "in_use": "predet.d2",  # with the embedded launcher
}


def comm_of(side: str):
    return importlib.import_module(MODULES[side]).comm


def leave(out: str, rank: int, **seen) -> None:
    (Path(out) / f"{rank}.json").write_text(json.dumps(seen))


def collectives(side: str, out: str) -> None:
    """Every function of `comm`, on values that differ by rank."""
    comm = comm_of(side)
    rank = comm.get_rank()
    comm.synchronize()
    losses = {"b": torch.tensor(1.0 + rank), "a": torch.tensor(10.0 * rank)}
    leave(
        out,
        rank,
        pid=os.getpid(),
        world_size=comm.get_world_size(),
        local=[comm.get_local_rank(), comm.get_local_size()],
        main=comm.is_main_process(),
        backend=dist.get_backend(),
        all_gather=comm.all_gather({"rank": rank, "long": "x" * (1000 * rank)}),
        gather=comm.gather([rank]),
        gather_on_1=comm.gather(rank, dst=1),
        seed=comm.shared_random_seed(),
        mean={k: v.item() for k, v in comm.reduce_dict(losses).items()},
        sum={k: v.item() for k, v in comm.reduce_dict(losses, average=False).items()},
    )
    if side == "detectron2":  # its launcher leaves the group open: the process may abort as it ends
        comm.synchronize()
        dist.destroy_process_group()


def alone(side: str, out: str) -> None:
    leave(out, 0, pid=os.getpid(), world_size=comm_of(side).get_world_size())


def failing(side: str, out: str) -> None:
    """Rank 1 fails while rank 0 waits for it."""
    comm = comm_of(side)
    leave(out, comm.get_rank(), pid=os.getpid())
    comm.synchronize()
    if comm.get_rank() == 1:
        raise KeyError("the reason why rank 1 failed")
    comm.synchronize()


def dying(side: str, out: str) -> None:
    """Rank 1 is killed while rank 0 is busy with something of its own."""
    comm = comm_of(side)
    leave(out, comm.get_rank(), pid=os.getpid())
    comm.synchronize()
    if comm.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def exiting(side: str, out: str) -> None:
    """All ranks end by sys.exit(0)."""
    leave(out, comm_of(side).get_rank(), pid=os.getpid())
    sys.exit(0)


def waiting(side: str, out: str) -> None:
    """Runs until SIGTERM comes, and ends well."""
    comm = comm_of(side)
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    comm.synchronize()
    leave(out, comm.get_rank(), pid=os.getpid())
    while not stopped:
        time.sleep(0.05)
    leave(out, comm.get_rank(), pid=os.getpid(), stopped=True)


def sleeping(side: str, out: str) -> None:
    """Runs for long and does not care about anything."""
    leave(out, comm_of(side).get_rank(), pid=os.getpid())
    time.sleep(600)


def main() -> None:
    side, job, num_gpus, out = sys.argv[1:]
    if side == "detectron2":
        launch = importlib.import_module(MODULES[side]).launch
    else:
        module = importlib.import_module("predet.d2.embedded.launch")
        module.GRACE_SECONDS = 2
        launch = module.launch
    launch(
        globals()[job],
        int(num_gpus),
        dist_url="auto",
        args=(side, out),
        timeout=timedelta(seconds=240),
    )


if __name__ == "__main__":
    main()
