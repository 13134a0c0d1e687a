"""Learning curves of one or several runs, from their `metrics.jsonl`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8C6D00", "#56B4E9", "#444444")
# Key of metrics.jsonl -> heading; drawn where some run has it.
LOSSES = {
    "loss": "training loss",
    "loss_class": "class loss",
    "loss_bbox": "box loss (L1)",
    "loss_giou": "box loss (GIoU)",
}
RESULTS = {"AP": "AP", "AP50": "AP50"}
SMOOTHED_OVER = 0.04  # of a run's length


class Curve(NamedTuple):
    """Values by step. N points."""

    steps: np.ndarray  # (N,)
    values: np.ndarray  # (N,)


def read_metrics(path: str | os.PathLike[str]) -> dict[str, Curve]:
    """All numbers of a run's `metrics.jsonl` (or of the folder that holds it), by key.

    A last line that a kill cut off is left out, and so are values that were not finite.

    Raises:
        ValueError: there is no such file, or it holds no metrics.
    """
    path = Path(path)
    path = path / "metrics.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"no metrics to draw: {path} does not exist")
    points: dict[str, list[tuple[int, float]]] = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row: dict[str, Any] = json.loads(line)
            step = int(row["step"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            if number == len(lines):
                continue
            raise ValueError(f"{path}, line {number} is no row of metrics: {line[:80]}") from error
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)):
                points.setdefault(name, []).append((step, float(value)))
    if not points:
        raise ValueError(f"no metrics to draw: {path} has no complete line")
    return {name: Curve(*np.asarray(values, dtype=np.float64).T) for name, values in points.items()}


def learning_curves(
    runs: Mapping[str, str | os.PathLike[str]],
    path: str | os.PathLike[str],
    *,
    title: str = "",
) -> Path:
    """Draw losses and AP of runs over their steps into a PNG.

    Args:
        runs: name -> folder or `metrics.jsonl` of a run, drawn in this order.
        path: the PNG to write.
        title: line above everything.

    Raises:
        ValueError: no runs, or a run without metrics.
    """
    if not runs:
        raise ValueError("no runs to draw")
    curves = {name: read_metrics(run) for name, run in runs.items()}
    shown = [key for key in (*LOSSES, *RESULTS) if any(key in run for run in curves.values())]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * rows + 0.7), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, key in zip(axes, shown, strict=False):
        for position, (name, run) in enumerate(curves.items()):
            if key in run:
                _draw(axis, run[key], name, COLORS[position % len(COLORS)], key in LOSSES)
        _dress(axis, {**LOSSES, **RESULTS}[key], key in LOSSES)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    handles = {h.get_label(): h for a in axes for h in a.get_lines() if h.get_label()[0] != "_"}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False
    )
    if title:
        figure.suptitle(title, fontsize=13)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _draw(axis: Axes, curve: Curve, name: str, color: str, is_loss: bool) -> None:
    if not is_loss:
        axis.plot(*curve, color=color, label=name, marker="o", markersize=4, linewidth=1.6)
        axis.annotate(
            f"{curve.values[-1]:.1f}",
            (curve.steps[-1], curve.values[-1]),
            xytext=(5, 4),
            textcoords="offset points",
            color=color,
            fontsize=9,
        )
        return
    window = max(1, round(SMOOTHED_OVER * len(curve.steps)))
    if window > 1:
        axis.plot(*curve, color=color, alpha=0.22, linewidth=0.8)
    axis.plot(curve.steps, _smoothed(curve.values, window), color=color, label=name, linewidth=1.6)


def _smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` values (fewer at the beginning)."""
    total = np.cumsum(np.insert(values, 0, 0.0))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - window)
    return (total[end] - total[start]) / (end - start)


def _dress(axis: Axes, heading: str, is_loss: bool) -> None:
    axis.set_title(heading, fontsize=11, loc="left")
    axis.set_xlabel("step", fontsize=9)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=9)
    axis.margins(x=0.04)
    if not is_loss:
        axis.set_ylim(bottom=0.0)
