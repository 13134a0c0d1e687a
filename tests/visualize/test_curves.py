"""Learning curves from metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from predet.visualize import learning_curves
from predet.visualize.curves import _smoothed, read_metrics


def write_run(folder: Path, *, steps: int = 100, results: bool = True) -> Path:
    folder.mkdir(parents=True)
    rows = []
    for step in range(1, steps + 1):
        rows.append({"step": step, "loss": 5 / step, "loss_class": 2 / step, "lr": 1e-4})
        if results and step % 25 == 0:
            rows.append({"step": step, "AP": step / 10, "AP50": step / 5, "AP/dog": None})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_values_are_read_by_key_and_step(tmp_path: Path) -> None:
    metrics = read_metrics(write_run(tmp_path / "run"))
    assert metrics["AP"].steps.tolist() == [25, 50, 75, 100]
    assert metrics["AP50"].values.tolist() == [5, 10, 15, 20]
    assert len(metrics["loss"].steps) == 100
    assert "AP/dog" not in metrics  # was not a number
    assert "step" not in metrics


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=3)
    path = run / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "lo')
    assert read_metrics(run)["loss"].steps.tolist() == [1, 2, 3]
    path.write_text('{"step": 4, "lo\n' + path.read_text())
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1 is no row of metrics"):
        read_metrics(run)


def test_missing_and_empty_runs_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none/metrics\.jsonl does not exist|none does not exist"):
        read_metrics(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="has no complete line"):
        read_metrics(tmp_path / "empty")
    with pytest.raises(ValueError, match="no runs"):
        learning_curves({}, tmp_path / "out.png")


def test_smoothing_is_the_mean_of_the_last_values() -> None:
    values = np.asarray([1.0, 3.0, 5.0, 7.0])
    assert _smoothed(values, 1).tolist() == [1, 3, 5, 7]
    assert _smoothed(values, 2).tolist() == [1, 2, 4, 6]
    assert _smoothed(values, 10).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("results", [True, False])
def test_a_figure_has_one_panel_for_each_quantity(tmp_path: Path, results: bool) -> None:
    runs = {name: write_run(tmp_path / name, results=results) for name in ("teacher", "student")}
    path = learning_curves(runs, tmp_path / "figures/curves.png", title="two runs")
    image = np.asarray(Image.open(path).convert("RGB"))
    columns, rows = (3, 2) if results else (2, 1)
    assert image.shape[1] == pytest.approx(4.6 * columns * 110, abs=1)
    assert image.shape[0] == pytest.approx((3.2 * rows + 0.7) * 110, abs=1)
    for color in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):  # one for each run
        assert (image == np.asarray(color)).all(axis=2).sum() > 50
