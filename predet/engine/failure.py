"""What a person sees when a run fails: one line for what they can change, else a traceback."""

from __future__ import annotations

import logging
from pathlib import Path

from predet.d2 import comm
from predet.engine.distributed import SharedError
from predet.engine.lifeline import Lifeline
from predet.engine.step import NonFiniteError

logger = logging.getLogger(__name__)

_NEWS_SECONDS = 5.0  # the connection to a dead process breaks before the news of its death is here


def end_of_run(error: Exception, lifeline: Lifeline, log: Path | None) -> BaseException:
    """What to raise in the place of an error of this process; the traceback goes to the log only.

    An error of the user, that is, one which our code raised on purpose or the system's refusal of a
    file, becomes `SystemExit` with one message; anything else stays what it is. An error that is
    the effect of another process's end becomes one that says so.

    Args:
        error: of the run in this process.
        lifeline: to the other processes.
        log: where the traceback is to be found; None: the run failed before it had a log.
    """
    logger.error("the run failed", exc_info=error, extra={"file_only": True})
    if isinstance(error, RuntimeError):
        news = lifeline.failure_of_another(patience=_NEWS_SECONDS)
        if news is not None:
            logger.error("%s", news, extra={"file_only": True})
            return SystemExit(f"error: this process ends because {news}")
    if not is_for_users(error):
        return error
    if isinstance(error, SharedError | NonFiniteError) and not comm.is_main_process():
        return SystemExit(1)  # process 0 says it
    return SystemExit(f"error: {error}" + (f" (traceback in {log})" if log else ""))


def is_for_users(error: BaseException) -> bool:
    """Whether the message tells all: ours, or the system's about a file."""
    if isinstance(error, OSError):
        return not isinstance(error, ConnectionError)
    return isinstance(error, ValueError | FloatingPointError) and _raised_by_us(error)


def _raised_by_us(error: BaseException) -> bool:
    frame = None
    traceback = error.__traceback__
    while traceback is not None:
        frame, traceback = traceback.tb_frame, traceback.tb_next
    return frame is not None and frame.f_globals.get("__name__", "").split(".")[0] == "predet"
