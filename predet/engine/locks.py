"""Claims of a piece of work or a folder, which end with their holder however it dies."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[int | None]:
    """The descriptor of the lock file, locked, or None where somebody else has the lock.

    The operating system releases it when the last process that has inherited it is gone. Without
    such locks (Windows) everybody has it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if fcntl is None:
            yield descriptor
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        try:
            yield descriptor
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for a child that lingers
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def only_writer(folder: Path, *, patience: float = 30.0) -> Iterator[None]:
    """Be the only run that writes to `folder`, which is made when missing.

    Args:
        patience: seconds to wait for another run: the processes of one that was killed need some
            to end.

    Raises:
        ValueError: there is another one still.
    """
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + patience
    while True:
        with contextlib.ExitStack() as stack:
            try:
                lock = stack.enter_context(claimed(folder / ".lock"))
            except OSError as error:  # a file system without locks
                logger.warning("%s: nothing keeps a second run away: %s", folder, error)
                yield
                return
            if lock is not None:
                yield
                return
        if time.monotonic() >= end:
            raise ValueError(
                f"another run is writing to {folder}: wait for its end, or choose another "
                "train.output_dir"
            )
        time.sleep(POLL_SECONDS)
