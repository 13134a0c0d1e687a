"""Stopping a run from outside without losing anything."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Turns SIGTERM, and the first SIGINT, into a wish that the trainer reads between steps.

    A second SIGINT interrupts at once. Processes forked later (loader workers) inherit the
    handler; there it does nothing, so that a signal to the whole group does not take the
    workers away from a step that is to be finished.
    """

    def __init__(self) -> None:
        self.requested = False
        self._pid = os.getpid()

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Handle the signals while the block runs."""
        before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return
        if number == signal.SIGINT and self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def interrupt_passed_to_children() -> Iterator[None]:
    """Let the first SIGINT ask the launched processes to stop; this one goes on waiting for them.

    The launcher passes SIGTERM on by itself. A second SIGINT interrupts as usual.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for child in multiprocessing.active_children():
            child.terminate()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
