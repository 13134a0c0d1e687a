"""The checkpoints of one run: the last, the one before it, and the best."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from predet.checkpoint.files import (
    DamagedCheckpointError,
    read_checkpoint,
    remove_partial_files,
    save_checkpoint,
    sync_folder,
    write_beside,
)

logger = logging.getLogger(__name__)


class Checkpoints:
    """The files `last.pth`, `previous.pth` and `best.pth` in `output_dir/checkpoints`.

    One process writes and loads (rank 0). At any instant at least one whole checkpoint is on the
    disk once the first has been saved: a kill between two renames leaves `previous.pth`, a
    truncated `last.pth` is set aside as `last.damaged.pth` and `previous.pth` is used.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.folder = Path(output_dir) / "checkpoints"
        self.last = self.folder / "last.pth"
        self.previous = self.folder / "previous.pth"
        self.best = self.folder / "best.pth"

    def exist(self) -> bool:
        """Whether there is anything to resume from, whole or not."""
        return self.last.exists() or self.previous.exists()

    def require_none(self) -> None:
        """Raise ValueError if there is a run here that a new one would overwrite."""
        if self.exist():
            raise ValueError(
                f"{self.folder} holds checkpoints of a run: add --resume to go on with it, or "
                "choose another train.output_dir"
            )

    def save(self, state: Mapping[str, Any]) -> Path:
        """Write `state` as the last checkpoint; what was the last becomes the previous one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_partial_files(self.folder)
        temporary = write_beside(self.last, state)
        if self.last.exists():
            os.replace(self.last, self.previous)
        os.replace(temporary, self.last)
        sync_folder(self.folder)
        return self.last

    def save_best(self, state: Mapping[str, Any]) -> Path:
        save_checkpoint(self.best, state)
        return self.best

    def keep_last(self) -> None:
        """Remove the other two, of a run that is over."""
        if self.last.exists():
            self.previous.unlink(missing_ok=True)
            self.best.unlink(missing_ok=True)

    def load(self) -> tuple[dict[str, Any], Path] | None:
        """The newest whole checkpoint and where it was read, or None where there is none.

        Raises:
            ValueError: there are files, and none of them is whole.
        """
        problems = []
        for path in (self.last, self.previous):
            if not path.exists():
                continue
            try:
                return read_checkpoint(path), path
            except DamagedCheckpointError as error:
                aside = path.with_name(f"{path.stem}.damaged.pth")
                os.replace(path, aside)
                problems.append(f"{error}; kept as {aside.name}")
                logger.warning("%s; trying the checkpoint before it", problems[-1])
        if problems:
            raise ValueError(
                f"no whole checkpoint is left in {self.folder}: " + "; ".join(problems)
            )
        return None
