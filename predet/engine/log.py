"""Where log lines go: rank 0 to the terminal and `train.log`, other ranks to files of their own."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

_OURS = ("predet", "__main__", "py.warnings")
_UNREADABLE = "backslashreplace"  # names of files need not be text


class _Readable(logging.Filter):
    """predet from INFO, other libraries from WARNING."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.name.split(".")[0] in _OURS


class _NotInFileOnly(logging.Filter):
    """The terminal does not repeat what Python itself prints when a run fails."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(record, "file_only", False)


class _File(logging.FileHandler):
    """A full disk must not bury the terminal under messages about the log."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def setup_logging(output_dir: str | Path | None = None, rank: int = 0) -> Path | None:
    """Send the log of this process to its places; calling it again replaces the places.

    Returns the file among them, if there is one.

    Args:
        output_dir: folder of `train.log` (rank 0) or `train.rank<r>.log`; None: terminal only.
        rank: only rank 0 writes to the terminal.
    """
    root = logging.getLogger()
    for handler in [h for h in root.handlers if getattr(h, "_predet", False)]:
        root.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = []
    if rank == 0:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors=_UNREADABLE)
        handlers.append(logging.StreamHandler(sys.stdout))
        handlers[-1].setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        handlers[-1].addFilter(_NotInFileOnly())
    path = None
    if output_dir is not None:
        path = Path(output_dir) / ("train.log" if rank == 0 else f"train.rank{rank}.log")
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(_File(path, encoding="utf-8", errors=_UNREADABLE))
        handlers[-1].setFormatter(
            logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
        )
    for handler in handlers:
        handler._predet = True  # type: ignore[attr-defined]
        handler.addFilter(_Readable())
        root.addHandler(handler)
    root.setLevel(min(root.level or logging.WARNING, logging.INFO))
    logging.captureWarnings(True)
    return path
