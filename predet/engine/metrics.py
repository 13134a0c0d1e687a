"""What a run tells while it trains: one line a period, `metrics.jsonl`, TensorBoard."""

from __future__ import annotations

import datetime
import json
import logging
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from predet.d2.embedded import comm

try:
    import resource
except ModuleNotFoundError:  # not a Unix system
    resource = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


class Window:
    """Sums since the last report. Losses stay on the device until somebody asks."""

    def __init__(self) -> None:
        self.steps = 0
        self.seconds = 0.0  # of the steps that this process made
        self.waiting = 0.0  # of them, for data
        self.waited = 0.0  # of them, for slower processes
        self.timed = 0  # steps that this process made
        self._sums: dict[str, float] = {}  # on the host
        self._names: tuple[str, ...] = ()
        self._pending: Tensor | None = None  # sums of `_names`, on the device

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Count one optimiser step with these scalars."""
        self.steps += 1
        if tuple(values) != self._names:
            self._fetch()
            self._names = tuple(values)
        row = torch.stack([value.detach() for value in values.values()]).double()
        self._pending = row if self._pending is None else self._pending + row

    def time(self, seconds: float, waiting: float, waited: float) -> None:
        self.seconds += seconds
        self.waiting += waiting
        self.waited += waited
        self.timed += 1

    def means(self) -> dict[str, float]:
        """Averages over steps and ranks; every rank must call it and gets the same."""
        self._average()
        return {name: value / max(self.steps, 1) for name, value in self._sums.items()}

    def waits(self) -> dict[str, float]:
        """How processes wait for each other, empty for one; every rank must call it.

        `wait_share` is the part of the time in which a process waits for a slower one, averaged
        over processes; `slowest_rank` is the one that waits least.
        """
        if comm.get_world_size() == 1:
            return {}
        shares = comm.all_gather(self.waited / max(self.seconds, 1e-9))
        return {
            "wait_share": sum(shares) / len(shares),
            "slowest_rank": shares.index(min(shares)),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed history has the same averages."""
        self._average()
        return {"steps": self.steps, "sums": dict(self._sums)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]
        self._sums, self._pending = dict(state["sums"]), None

    def _fetch(self) -> None:
        """Move pending sums to the host."""
        if self._pending is not None:
            for name, value in zip(self._names, self._pending.tolist(), strict=True):
                self._sums[name] = self._sums.get(name, 0.0) + value
        self._pending = None

    def _average(self) -> None:
        """Give every rank the average of all ranks' sums."""
        self._fetch()
        gathered = comm.all_gather(self._sums)
        names = dict.fromkeys(name for sums in gathered for name in sums)
        self._sums = {
            name: sum(sums.get(name, 0.0) for sums in gathered) / len(gathered) for name in names
        }


def group_losses(losses: Mapping[str, float]) -> dict[str, float]:
    """Sum repeats under their base name: `loss_bbox_3` and `loss_bbox_enc` under `loss_bbox`.

    A name is a repeat if another one, followed by `_`, begins it.
    """
    grouped: dict[str, float] = {}
    for name, value in losses.items():
        bases = [other for other in losses if name.startswith(other + "_")]
        base = min(bases, key=len) if bases else name
        grouped[base] = grouped.get(base, 0.0) + value
    return grouped


class History:
    """`metrics.jsonl` and TensorBoard events of a run, on rank 0; other ranks write nothing.

    Args:
        output_dir: folder of both.
        step: steps that are done; what a killed run wrote about later steps is taken out.
        evaluated: whether the evaluation of `step` is done; if not, its row is taken out too.
    """

    def __init__(self, output_dir: str | Path, *, step: int, evaluated: bool) -> None:
        self._path = Path(output_dir) / "metrics.jsonl"
        self._events: Any = None
        if not comm.is_main_process():
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._truncate(step, evaluated)
        from torch.utils.tensorboard import SummaryWriter  # slow to import; one rank needs it

        self._events = SummaryWriter(str(self._path.parent / "tensorboard"), purge_step=step + 1)

    def write(self, row: Mapping[str, Any], scalars: Mapping[str, float]) -> None:
        """Append `row` (it holds `step`) to the history, and `scalars` to the events."""
        if self._events is None:
            return
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(without_nan(row)) + "\n")
            for name, value in scalars.items():
                self._events.add_scalar(name, value, row["step"])
        except OSError as error:
            raise ValueError(f"cannot write the history in {self._path.parent}: {error}") from error

    def close(self) -> None:
        if self._events is None:
            return
        try:
            self._events.close()
        except OSError as error:  # what was at stake is in metrics.jsonl and in the checkpoint
            logger.warning("cannot close the events in %s: %s", self._path.parent, error)

    def _truncate(self, step: int, evaluated: bool) -> None:
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the line that a kill cut off
                continue
            pending = row["step"] == step and not evaluated and "loss" not in row
            if row["step"] <= step and not pending:
                kept.append(line + "\n")
        temporary = self._path.with_suffix(".partial")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, self._path)


def progress_line(row: Mapping[str, Any], *, max_iter: int) -> str:
    """One readable line of a row of `metrics.jsonl`."""
    eta = datetime.timedelta(seconds=round((max_iter - row["step"]) * row["seconds_per_step"]))
    losses = "  ".join(
        f"{name.removeprefix('loss_')} {value:.4g}"
        for name, value in row.items()
        if name.startswith("loss_")
    )
    waits = (
        f"wait {row['wait_share']:.0%} for rank {row['slowest_rank']}  "
        if "wait_share" in row
        else ""
    )
    return (
        f"step {row['step']}/{max_iter}  eta {eta}  lr {row['lr']:.3g}  loss {row['loss']:.4g}  "
        f"{losses}  grad {row['grad_norm']:.3g}  {row['seconds_per_step']:.3g} s/step  "
        f"data {row['data_share']:.0%}  {waits}mem {row['memory_gb']:.2f} GB"
    )


def result_table(results: Mapping[str, float]) -> str:
    """An evaluation as text: the summary in one line, then one line for each class."""
    summary = {name: value for name, value in results.items() if "/" not in name}
    single = {name: value for name, value in results.items() if "/" in name}
    lines = ["  ".join(f"{name} {value:.2f}" for name, value in summary.items())]
    width = max(map(len, single), default=0)
    lines += [f"  {name:<{width}}  {value:.2f}" for name, value in single.items()]
    return "\n".join(line for line in lines if line)


def memory_gb(device: torch.device) -> float:
    """Peak memory: of the GPU where there is one, else resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if resource is None:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def write_json(path: Path, content: Any) -> None:
    """Write a small file that is there as a whole or not at all."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")
    os.replace(temporary, path)


def without_nan(value: Any) -> Any:
    """The same with None for NaN and infinity, which JSON does not know."""
    if isinstance(value, Mapping):
        return {name: without_nan(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
