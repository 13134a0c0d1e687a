"""Run stages, each the command that a user would type, as soon as what they need is there.

A stage that has finished is not run again, so killed work goes on where it stopped; inside a stage
the stage's own resume does the same. Several processes may work on one folder: a stage is claimed
by an exclusive lock on its lock file, which the operating system releases when its holder dies,
however it dies. The stage's own process inherits the lock: if only the one that started it is
killed, the orphan is waited for instead of being started twice.

Of each stage `NAME.json` in the folder of records keeps what ran, how it ended and what it cost.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from predet.engine.locks import claimed

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
LOG_TAIL_BYTES = 3000


class Stage(NamedTuple):
    """One step of some work."""

    name: str  # unique; also the name of its files among the records
    command: tuple[str, ...]
    # Made last: a training that was asked to stop exits without an error, but is not finished.
    product: Path
    needs: tuple[str, ...] = ()  # names of the stages that must have finished before
    # What makes this stage the one that has finished under its name, else its command.
    identity: str = ""


class StageRecord(NamedTuple):
    """What is known of a finished stage. Both times sum the attempts that ended by themselves."""

    name: str
    command: tuple[str, ...]
    seconds: float  # wall time
    core_seconds: float  # processor time of the stage's processes
    lost: int  # attempts that were killed together with us, whose times are not known
    made_by: str  # code and machine of the attempt that finished, "" where it was not said


class StageFailed(RuntimeError):
    """Stages ended without what they were to make; the same work can be started again."""


def run_stages(
    stages: Sequence[Stage],
    records: str | Path,
    *,
    jobs: int = 1,
    log_files: bool = False,
    environment: dict[str, str] | None = None,
    made_by: str = "",
    on_finish: Callable[[Stage, StageRecord], None] | None = None,
) -> list[StageRecord]:
    """Run every stage that the folder `records` does not hold as finished.

    One that fails keeps back only what needs it; the rest is run.

    Args:
        stages: in an order in which each comes after what it needs.
        records: folder of records, locks and logs; made when missing.
        jobs: stages of this process that run at the same time.
        log_files: send what stages print to `NAME.log` among the records, not to our output.
        environment: variables for the stages, over our own.
        made_by: code and machine, kept in the records of what runs now.
        on_finish: called for each stage that has been run to its end here.

    Returns:
        Records of all stages, in their order.

    Raises:
        ValueError: a stage of this name has finished here with another identity; a name is there
            twice, or a stage needs one that does not come before it.
        StageFailed: stages failed or were stopped; what finished is kept.
    """
    _check(stages)
    folder = Path(records)
    folder.mkdir(parents=True, exist_ok=True)
    work = _Work(stages, folder, log_files, environment or {}, made_by, on_finish)
    work.run(jobs)
    return [_record_of(stage, _read(folder, stage)) for stage in stages]


def finished_record(stage: Stage, records: str | Path) -> StageRecord | None:
    """The record of a stage if it has finished, else None.

    Raises:
        ValueError: it has finished with another identity.
    """
    known = _read(Path(records), stage)
    if not known["finished"]:
        return None
    if known["identity"] != _identity(stage):
        raise ValueError(
            f"stage '{stage.name}' has finished in {records} with another command:\n"
            f"  then: {known['identity']}\n  now:  {_identity(stage)}\n"
            "Use another output folder, or remove this one."
        )
    return _record_of(stage, known) if stage.product.exists() else None


class _Work:
    """The stages of one call, taken by one or more threads."""

    def __init__(
        self,
        stages: Sequence[Stage],
        folder: Path,
        log_files: bool,
        environment: dict[str, str],
        made_by: str,
        on_finish: Callable[[Stage, StageRecord], None] | None,
    ) -> None:
        self.folder, self.log_files = folder, log_files
        self.made_by, self.on_finish = made_by, on_finish
        self.environment = {**os.environ, **environment}
        self.finished = {s.name for s in stages if finished_record(s, folder)}
        self.waiting = [stage for stage in stages if stage.name not in self.finished]
        self.tried: set[str] = set()  # a thread of ours has them, or is asking for them
        self.running: dict[str, int] = {}  # process ids
        self.failed: dict[str, StageFailed] = {}
        self.error: BaseException | None = None  # stops all of us
        self.mutex = threading.Lock()
        self.announced: set[str] = set()

    def run(self, jobs: int) -> None:
        with _terminated_as_interrupt():
            threads = [threading.Thread(target=self._take_stages) for _ in range(jobs)]
            for thread in threads:
                thread.start()
            try:
                for thread in threads:
                    while thread.is_alive():  # a join without a limit is deaf to signals
                        thread.join(0.2)
            except BaseException as error:
                self._stop(error)
                for thread in threads:
                    thread.join()
        if self.error is not None:
            raise self.error
        if self.failed:
            raise self._failure()

    def _failure(self) -> StageFailed:
        *others, last = map(str, self.failed.values())
        text = "\n".join([*others, last, "Run the same command again to go on from here."])
        kept_back = len(self.waiting) - len(self.failed)
        if kept_back:
            text = f"{kept_back} stages were not run, for they need one that failed.\n{text}"
        return StageFailed(text)

    def _open(self) -> list[Stage]:
        """What still can be run, here or elsewhere, now or later."""
        hopeless = set(self.failed)
        for stage in self.waiting:
            if not hopeless.isdisjoint(stage.needs):
                hopeless.add(stage.name)
        return [stage for stage in self.waiting if stage.name not in hopeless]

    def _stop(self, error: BaseException) -> None:
        """Start nothing more, and ask what runs to save its work and end."""
        with self.mutex:
            self.error = self.error or error
            for process in self.running.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGTERM)

    def _take_stages(self) -> None:
        while self.error is None:
            with self.mutex:
                open_stages = self._open()
                ready = [stage for stage in open_stages if self.finished.issuperset(stage.needs)]
            if not open_stages:
                return
            try:
                if not any(self._try(stage) for stage in ready):
                    time.sleep(POLL_SECONDS)  # the rest needs what others are doing
            except Exception as error:
                with self.mutex:
                    self.error = self.error or error

    def _try(self, stage: Stage) -> bool:
        """Claim and run a stage. False: somebody else has it, or we are to stop."""
        with self.mutex:
            if stage.name in self.tried or stage.name in self.finished:
                return False
            self.tried.add(stage.name)
        try:
            with claimed(self.folder / f"{stage.name}.lock") as lock:
                return self.error is None and self._have(stage, lock)
        except StageFailed as error:
            with self.mutex:
                self.failed[stage.name] = error
            return True
        finally:
            with self.mutex:
                self.tried.discard(stage.name)

    def _have(self, stage: Stage, lock: int | None) -> bool:
        """Run a stage that is claimed, unless somebody has finished it in the meantime."""
        if lock is None:
            if stage.name not in self.announced:
                self.announced.add(stage.name)
                logger.info("%s: another process is at it", stage.name)
            return False
        record = finished_record(stage, self.folder)
        if record is None:
            record = self._run(stage, lock)
            if self.on_finish is not None:
                self.on_finish(stage, record)
        with self.mutex:
            self.finished.add(stage.name)
            self.waiting = [other for other in self.waiting if other.name != stage.name]
        return True

    def _run(self, stage: Stage, lock: int) -> StageRecord:
        known = _read(self.folder, stage)
        known["lost"] += known.pop("begun", 0)  # begun, and no end was written
        _write(self.folder, stage, {**known, "begun": 1})
        logger.info("%s: %s", stage.name, shlex.join(stage.command))
        log = self.folder / f"{stage.name}.log" if self.log_files else None
        status, seconds, core_seconds = self._call(stage, lock, log)
        known["identity"], known["command"] = _identity(stage), list(stage.command)
        known["seconds"] += seconds
        known["core_seconds"] += core_seconds
        known["made_by"] = self.made_by
        known["status"] = status
        known["finished"] = status == 0 and stage.product.exists()
        _write(self.folder, stage, known)
        if not known["finished"]:
            raise StageFailed(
                f"stage '{stage.name}' did not finish (exit status {status}, {stage.product} "
                f"{'exists' if stage.product.exists() else 'was not made'}): "
                f"{shlex.join(stage.command)}\n{_tail(log)}"
            )
        return _record_of(stage, known)

    def _call(self, stage: Stage, lock: int, log: Path | None) -> tuple[int, float, float]:
        """Run the command. Returns exit status, wall time and processor time."""
        start = time.monotonic()
        output = open(log, "ab") if log else None  # noqa: SIM115
        try:
            with self.mutex:
                process = subprocess.Popen(
                    stage.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT if output else None,
                    env=self.environment,
                    pass_fds=(lock,),
                    # Ctrl-C reaches us only, and we ask the stages to stop.
                    start_new_session=True,
                )
                self.running[stage.name] = process.pid
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            with self.mutex:
                self.running.pop(stage.name, None)
            if output:
                output.close()
        return process.returncode, time.monotonic() - start, usage.ru_utime + usage.ru_stime


@contextlib.contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, where we may decide about signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check(stages: Sequence[Stage]) -> None:
    seen: set[str] = set()
    for stage in stages:
        missing = [name for name in stage.needs if name not in seen]
        if missing:
            raise ValueError(f"stage '{stage.name}' needs '{missing[0]}', which is not before it")
        if stage.name in seen:
            raise ValueError(f"two stages are named '{stage.name}'")
        seen.add(stage.name)


def _identity(stage: Stage) -> str:
    return stage.identity or shlex.join(stage.command)


def _read(folder: Path, stage: Stage) -> dict[str, Any]:
    path = folder / f"{stage.name}.json"
    empty = {"finished": False, "seconds": 0.0, "core_seconds": 0.0, "lost": 0, "made_by": ""}
    return {**empty, **json.loads(path.read_text())} if path.exists() else empty


def _write(folder: Path, stage: Stage, known: dict[str, Any]) -> None:
    path = folder / f"{stage.name}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(known, indent=2))
    os.replace(temporary, path)


def _record_of(stage: Stage, known: dict[str, Any]) -> StageRecord:
    return StageRecord(
        name=stage.name,
        command=stage.command,
        seconds=known["seconds"],
        core_seconds=known["core_seconds"],
        lost=known["lost"],
        made_by=known["made_by"],
    )


def _tail(log: Path | None) -> str:
    """The end of a log, for an error message."""
    if log is None:
        return ""
    text = log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
    return f"The end of {log}:\n{text}\n"
