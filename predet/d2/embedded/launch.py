"""Start the processes of a job, on GPUs or on CPUs. Contract: `detectron2.engine.launch`.

Beyond that contract: without GPUs the processes run on the CPU and talk through gloo; under
`torchrun`, or whatever else sets its variables, no process is started; SIGTERM is passed on to the
processes; if one fails the others are ended, and the error raised here shows its traceback (or, if
it ended by `sys.exit(text)`, so does this one); none outlives the process that started it.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
import torch.multiprocessing

from predet.d2.embedded import comm

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT = timedelta(minutes=30)
_TRACEBACK = "\0"  # first character of a report that is a traceback, not a last word
GRACE_SECONDS = 10  # for the other processes to end by themselves, then once more after SIGTERM


@dataclass(frozen=True)
class _Job:
    """What every process must know to find the others."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    use_gpu: bool
    url: str | None  # None: the store of the starting process, at `port` of this machine
    port: int
    timeout: timedelta


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: Sequence[Any] = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Call `main_func(*args)` in every process of a job, on this machine's share of them.

    A job of one process runs here. Otherwise processes are spawned, so `main_func` must be
    importable and `args` picklable. Under torchrun this process is one of the job's already.

    Args:
        main_func: what to run; in a job of several processes `torch.distributed` is ready in it.
        num_gpus_per_machine: processes per machine, one for each GPU; 0 is one process that does
            not count on GPUs. On a machine without any they share the CPU.
        num_machines: machines in the job; this must be called on each.
        machine_rank: number of this machine, from 0.
        dist_url: where processes meet; None and "auto" choose a free port of this machine.
        args: arguments of `main_func`.
        timeout: of collective operations.

    Raises:
        ValueError: the numbers do not fit together or with the machine.
        RuntimeError: a process failed; says which and shows its traceback.
        SystemExit: a process ended by `sys.exit(text)`; or the processes were ended by a SIGTERM to
            this one and did not handle it.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        job = _torchrun_job(num_gpus_per_machine, num_machines, timeout)
        _run(job, main_func, args)
        return
    num_processes = max(1, num_gpus_per_machine)
    _check_counts(num_gpus_per_machine, num_machines, machine_rank)
    use_gpu = num_gpus_per_machine > 0 and torch.cuda.is_available()
    if use_gpu and num_processes > torch.cuda.device_count():
        raise ValueError(
            f"asked for {num_processes} GPUs, this machine has {torch.cuda.device_count()}"
        )
    world_size = num_machines * num_processes
    if world_size == 1:
        main_func(*args)
        return
    if not use_gpu:
        logger.warning("%d processes on the CPU of this machine", num_processes)
    url = _meeting_point(dist_url, num_machines)
    store = (
        dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if not url else None
    )
    jobs = [
        _Job(
            rank=machine_rank * num_processes + local_rank,
            world_size=world_size,
            local_rank=local_rank,
            local_size=num_processes,
            use_gpu=use_gpu,
            url=url,
            port=store.port if store else 0,
            timeout=timeout,
        )
        for local_rank in range(num_processes)
    ]
    _spawn(jobs, main_func, args)


def _check_counts(num_gpus: int, num_machines: int, machine_rank: int) -> None:
    if num_gpus < 0:
        raise ValueError(f"the number of GPUs must not be negative, got {num_gpus}")
    if num_machines < 1 or not 0 <= machine_rank < num_machines:
        raise ValueError(
            f"machine rank must be in [0, number of machines), got {machine_rank} of {num_machines}"
        )


def _meeting_point(dist_url: str | None, num_machines: int) -> str | None:
    if dist_url not in (None, "auto"):
        return dist_url
    if num_machines > 1:
        raise ValueError(
            f"{num_machines} machines need dist_url, tcp://HOST:PORT of machine 0; got {dist_url!r}"
        )
    return None


def _torchrun_job(num_gpus: int, num_machines: int, timeout: timedelta) -> _Job:
    """The job that the environment describes."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", max(1, world_size // num_machines)))
    local_rank = int(os.environ.get("LOCAL_RANK", rank % local_size))
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if world_size > 1 and missing:
        raise ValueError(f"RANK and WORLD_SIZE are set, but {' and '.join(missing)} is not")
    if num_gpus not in (0, 1, local_size):
        logger.warning(
            "asked for %d processes on this machine, but RANK and WORLD_SIZE are set: "
            "this process is one of %d here, and starts none",
            num_gpus,
            local_size,
        )
    use_gpu = num_gpus > 0 and torch.cuda.is_available()
    if use_gpu and local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"no GPU for process {local_rank} of this machine: it has {torch.cuda.device_count()}"
        )
    return _Job(rank, world_size, local_rank, local_size, use_gpu, "env://", 0, timeout)


def _run(job: _Job, main_func: Callable[..., Any], args: Sequence[Any]) -> None:
    """One process of the job, from joining it to leaving it."""
    if job.use_gpu:
        torch.cuda.set_device(job.local_rank)
    if job.world_size == 1:
        main_func(*args)
        return
    meeting: dict[str, Any] = {"init_method": job.url}
    if job.url is None:
        meeting = {"store": dist.TCPStore("127.0.0.1", job.port, timeout=job.timeout)}
    dist.init_process_group(
        "nccl" if job.use_gpu else "gloo",
        rank=job.rank,
        world_size=job.world_size,
        timeout=job.timeout,
        **meeting,
    )
    _group_by_machine(job.local_size)
    comm.synchronize()
    try:
        main_func(*args)
    except SystemExit as end:
        if not end.code:
            dist.destroy_process_group()
        raise
    # Left open, its threads can abort the process at its end. After an error it may wait for ever.
    dist.destroy_process_group()


def _group_by_machine(local_size: int) -> None:
    """Ready both the embedded `comm` and the one in use, which may be Detectron2's."""
    from predet import d2

    comm.create_local_process_group(local_size)
    if d2.comm is not comm:
        d2.comm.create_local_process_group(local_size)


def _spawn(jobs: list[_Job], main_func: Callable[..., Any], args: Sequence[Any]) -> None:
    """Start a process for each job, wait for them, and raise what went wrong in them."""
    context = torch.multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="predet-launch-") as folder:
        reports = [Path(folder) / str(job.local_rank) for job in jobs]
        processes = [
            context.Process(target=_worker, args=(job, main_func, args, report, os.getpid()))
            for job, report in zip(jobs, reports, strict=True)
        ]
        with _pass_on_sigterm(processes) as sigterm:
            try:
                for process in processes:
                    process.start()
                first_failed = _wait(processes)
            finally:
                _end(processes)
        if first_failed is None:
            return
        if sigterm.is_set() and not any(report.exists() for report in reports):
            sys.exit(128 + signal.SIGTERM)
        _raise_failure(jobs, processes, reports, first_failed)


def _worker(
    job: _Job, main_func: Callable[..., Any], args: Sequence[Any], report: Path, parent: int
) -> None:
    """Body of a spawned process; leaves traceback or last word in `report` if it fails.

    It ends without tearing down the interpreter: threads of libraries, gloo's among them, may abort
    a process that does, after its work is done.
    """
    _die_with(parent)
    if not job.use_gpu and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, _usable_cores() // job.local_size))
    try:
        _run(job, main_func, args)
    except SystemExit as end:
        if end.code:
            report.write_text(end.code if isinstance(end.code, str) else "", encoding="utf-8")
            sys.exit(1)
    except Exception:
        report.write_text(_TRACEBACK + traceback.format_exc(), encoding="utf-8")
        sys.exit(1)
    atexit._run_exitfuncs()  # ends this process's children and flushes logs, as at any end
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _die_with(parent: int) -> None:
    """Have the system kill this process when its parent ends, however it ends (Linux only)."""
    if sys.platform != "linux":
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _pass_on_sigterm(processes: Sequence[BaseProcess]) -> Iterator[threading.Event]:
    """Send SIGTERM on to the processes; the event says whether there was one."""
    received = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def pass_on(signum, frame) -> None:
        received.set()
        for process in processes:
            if process.is_alive():
                process.terminate()

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


def _wait(processes: Sequence[BaseProcess]) -> int | None:
    """Wait until all have ended well, or one has not; returns the index of that one."""
    running = {process.sentinel: index for index, process in enumerate(processes)}
    while running:
        failed = []
        for sentinel in wait(list(running)):
            index = running.pop(sentinel)
            processes[index].join()
            if processes[index].exitcode != 0:
                failed.append(index)
        if failed:
            return failed[0]
    return None


def _end(processes: Sequence[BaseProcess]) -> None:
    """Make sure that none is left: wait, then SIGTERM, then SIGKILL."""
    for act in (None, BaseProcess.terminate, BaseProcess.kill):
        alive = [process for process in processes if process.pid is not None and process.is_alive()]
        if act is not None:
            for process in alive:
                act(process)
        deadline = time.monotonic() + GRACE_SECONDS
        for process in alive:
            process.join(max(0.0, deadline - time.monotonic()))


def _raise_failure(
    jobs: list[_Job], processes: Sequence[BaseProcess], reports: list[Path], first_failed: int
) -> NoReturn:
    """The report that was written first is the cause; what others report is often its effect."""
    texts = {i: path.read_text(encoding="utf-8") for i, path in enumerate(reports) if path.exists()}
    written = sorted(texts, key=lambda index: reports[index].stat().st_mtime_ns)
    speaking = [index for index in written if texts[index]]
    # One that died without a report did so before those that then missed it.
    silent = first_failed not in texts
    if not silent and speaking and not texts[speaking[0]].startswith(_TRACEBACK):
        sys.exit(texts[speaking[0]])
    lines = []
    for index in speaking if silent else speaking[1:]:
        last = texts[index].strip().splitlines()[-1]
        lines.append(f"process {jobs[index].rank} of {jobs[index].world_size} then failed: {last}")
    if silent or not speaking:
        code = processes[first_failed].exitcode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        cause = f"ended with {how}"
    else:
        first_failed = speaking[0]
        cause = "failed:\n\n" + texts[first_failed].removeprefix(_TRACEBACK)
    job = jobs[first_failed]
    raise RuntimeError("\n".join([f"process {job.rank} of {job.world_size} {cause}", *lines]))
