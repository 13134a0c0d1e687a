"""Run the stages of a chain one after another, each as the command a user would type.

A stage that has finished is not run again, so a killed chain goes on where it stopped; inside a
stage the stage's own resume does the same. What ran, with which command and for how long, is kept
in `chain.json` in the output folder.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)


class Stage(NamedTuple):
    """One step of a chain."""

    name: str  # unique in the chain
    command: tuple[str, ...]
    # Made last: a training that was asked to stop exits without an error, but is not finished.
    product: Path


class StageRecord(NamedTuple):
    """What is known of a finished stage; `seconds` sums the attempts that ended by themselves."""

    name: str
    command: tuple[str, ...]
    seconds: float


class StageFailed(RuntimeError):
    """A stage ended with an exit status other than zero; the chain can be run again."""


def run_chain(stages: Sequence[Stage], output_dir: str | Path) -> list[StageRecord]:
    """Run every stage that `output_dir/chain.json` does not hold as finished.

    Raises:
        ValueError: a stage of this name has finished here with another command.
        StageFailed: a stage failed or was stopped; what finished before it is kept.
    """
    path = Path(output_dir) / "chain.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    state = json.loads(path.read_text()) if path.exists() else {}
    for stage in stages:
        known = state.setdefault(stage.name, {"seconds": 0.0, "finished": False})
        if known["finished"] and known["command"] != list(stage.command):
            raise ValueError(
                f"stage '{stage.name}' has finished in {path.parent} with another command:\n"
                f"  then: {shlex.join(known['command'])}\n  now:  {shlex.join(stage.command)}\n"
                "Use another output folder, or remove this one."
            )
        if known["finished"]:
            logger.info("%s: finished before (%.0f s)", stage.name, known["seconds"])
            continue
        _run_stage(stage, known)
        _write(path, state)
        if not known["finished"]:
            raise StageFailed(
                f"stage '{stage.name}' did not finish (exit status {known['status']}, "
                f"{stage.product} {'exists' if stage.product.exists() else 'was not made'}): "
                f"{shlex.join(stage.command)}\nRun the same command again to go on from here."
            )
    return [StageRecord(s.name, s.command, state[s.name]["seconds"]) for s in stages]


def _run_stage(stage: Stage, known: dict) -> None:
    logger.info("%s: %s", stage.name, shlex.join(stage.command))
    start = time.monotonic()
    status = subprocess.run(stage.command, stdin=subprocess.DEVNULL).returncode
    known["command"] = list(stage.command)
    known["seconds"] += time.monotonic() - start
    known["status"] = status
    known["finished"] = status == 0 and stage.product.exists()


def _write(path: Path, state: dict) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(state, indent=2))
    os.replace(temporary, path)
