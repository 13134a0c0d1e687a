"""Training processes for tests: started from a server that has imported everything once."""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

DEADLINE = 240.0  # seconds; the machine may be busy

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "predet.engine.train_net",
        "predet.evaluation.coco",
        "predet.projects.deformable_detr",
        "engine_standins",
        "torch._dynamo",
        "torch.utils.tensorboard",
    ]
)


class Job:
    """The command `predet-train argv` in one or several processes, as torchrun starts them."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        log: Path,
        processes: int = 1,
        env: Mapping[str, str] | None = None,
    ) -> None:
        shared = {"OMP_NUM_THREADS": "1", **(env or {})}
        if processes > 1:
            shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
            shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        self.log = log
        self.processes = []
        for rank in range(processes):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
            process = _context.Process(
                target=_child, args=(list(argv), {**shared, **own}, str(log))
            )
            process.start()
            self.processes.append(process)

    def wait(self) -> list[int | None]:
        """Exit codes of all processes; negative: the signal that ended one."""
        deadline = time.monotonic() + DEADLINE
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            assert process.exitcode is not None, f"process hangs; log:\n{self.text()}"
        return [process.exitcode for process in self.processes]

    def succeed(self) -> None:
        codes = self.wait()
        assert codes == [0] * len(codes), f"exit codes {codes}; log:\n{self.text()}"

    def signal_after_step(self, step: int, number: int, metrics: Path) -> None:
        """Send a signal to all processes once `metrics` (one row a step) tells of `step`."""
        deadline = time.monotonic() + DEADLINE
        while last_step(metrics) < step:
            assert time.monotonic() < deadline, f"step {step} is not reached:\n{self.text()}"
            assert any(p.is_alive() for p in self.processes), f"ended early:\n{self.text()}"
            time.sleep(0.005)
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def last_step(metrics: Path) -> int:
    """The last step that a whole line of `metrics.jsonl` names."""
    if not metrics.exists():
        return -1
    lines = [line for line in metrics.read_text().split("\n")[:-1] if line]
    return json.loads(lines[-1])["step"] if lines else 0


def run_once(argv: Sequence[str], **options) -> None:
    Job(argv, **options).succeed()


def kill_and_resume(
    argv: Sequence[str], kills: Sequence[int], *, output_dir: Path, **options
) -> None:
    """Run, SIGKILL after each of the steps in `kills`, run again, and let the last one finish."""
    for step in kills:
        job = Job(argv, **options)
        job.signal_after_step(step, signal.SIGKILL, output_dir / "metrics.jsonl")
        codes = job.wait()
        assert -signal.SIGKILL in codes, f"not killed: {codes}"
    Job(argv, **options).succeed()


def run_ranks(function: Callable[..., None], processes: int, *args: Any, folder: Path) -> None:
    """Call `function(*args)` in processes that have joined a gloo group; all must end well."""
    folder.mkdir(parents=True, exist_ok=True)
    ranks = [
        _context.Process(target=_rank, args=(function, rank, processes, str(folder), args))
        for rank in range(processes)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(DEADLINE)
    assert [process.exitcode for process in ranks] == [0] * processes


def _rank(
    function: Callable[..., None], rank: int, world_size: int, folder: str, args: tuple
) -> None:
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size
    )
    function(*args)
    torch.distributed.destroy_process_group()


def _child(argv: list[str], env: Mapping[str, str], log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(env)
    multiprocessing.set_start_method("fork", force=True)  # loader workers need no new server
    import torch

    torch.set_num_threads(1)
    from predet.engine import train_net

    if "STANDIN_TIMEOUT" in env:
        train_net.PROCESS_TIMEOUT = datetime.timedelta(seconds=float(env["STANDIN_TIMEOUT"]))
    try:
        train_net.main(argv)
    finally:
        sys.stdout.flush()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
