"""The page of a comparison: the numbers in its tables and charts, of runs that are made up."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from comparison_job import HERE

from predet.engine import comparison_page
from predet.engine.comparison import load_comparison
from predet.engine.comparison_page import Analysis, page_blocks
from predet.engine.comparison_results import Results, read_run
from predet.evaluation.comparison import Arm, Run, differences
from predet.evaluation.resampling import ClassMatches, Matches
from predet.visualize.page import Folded, Table

LABELS = "10 labelled images"
ARMS = (
    Arm("scratch", "scratch", {}),
    Arm("longer", "longer", {}),
    Arm("teacher_on", "teacher on", {}),
    Arm("method", "the method", {"a": "scratch", "b": "longer", "c": "teacher_on"}),
)
# Of each arm: updates before its last stage, what AP50 is above AP, and the curves of two seeds.
MADE = {
    "scratch": (0, 20, (((50, 5.0), (100, 24.0)), ((50, 7.0), (100, 26.0)))),
    "longer": (0, 20, (((100, 30.0), (200, 49.0)), ((100, 30.0), (200, 51.0)))),
    "teacher_on": (100, 20, (((100, 10.0), (200, 14.0)), ((100, 12.0), (200, 18.0)))),
    "method": (100, 27, (((50, 10.0), (100, 30.0)), ((50, 20.0), (100, 40.0)))),
}


@pytest.fixture
def analysis() -> Analysis:
    hit = np.ones((10, 4), bool)
    one = ClassMatches(image=np.arange(4), hit=hit, counts=hit, objects=np.ones(4, int))
    runs = []
    for arm, (earlier, above, curves) in MADE.items():
        for seed, curve in enumerate(curves):
            ap = curve[-1][1]
            results = dict.fromkeys(("AP", "AP75", "APs", "APm", "AP/disc"), ap)
            results |= {"AP50": ap + above, "APl": math.nan}
            found = Matches(tuple(range(4)), (one,))
            runs.append(Run(arm, LABELS, seed, results, curve, earlier, found))
    comparison = load_comparison(HERE / "comparison_config.py")
    return Analysis(
        comparison=dataclasses.replace(comparison, compared=ARMS),
        results=Results(tuple(runs), ((),) * len(runs), (), 0),
        differences=tuple(differences(runs, ARMS, resamples=10)),
        verdicts=(),
        leakage=None,
        test_images=4,
        about={},
    )


def table(analysis: Analysis, column: str) -> dict[str, dict[str, str]]:
    """The table that has this column: rows by their first cell, or first two."""
    blocks = page_blocks(analysis)
    blocks += [inner for block in blocks if isinstance(block, Folded) for inner in block.blocks]
    (found,) = (b for b in blocks if isinstance(b, Table) and column in b.header)
    keys = 2 if found.header[1] == "against" else 1
    return {" ".join(row[:keys]): dict(zip(found.header, row, strict=True)) for row in found.rows}


def test_differences_are_told_with_their_metrics_and_seeds(analysis: Analysis) -> None:
    rows = table(analysis, "updates to its AP")
    assert len(rows) == 3
    scratch = rows["the method (a) scratch"]
    assert (scratch["AP"], scratch["AP50"], scratch["by seed"]) == ("+10.0", "+17.0", "+6.0, +14.0")
    assert scratch["95% over seeds"] == "-40.8 to +60.8"  # 10 -+ 12.7062 * 5.657 / sqrt(2)
    assert scratch["updates to its AP"] == "75"  # from 15 to 35 within 50 to 100, 25 is reached
    assert rows["the method (b) scratch for as long"]["updates to its AP"] == "not reached"
    teacher = rows["the method (c) teacher or scratch, trained on"]
    assert (teacher["AP"], teacher["updates to its AP"]) == ("+19.0", "52")  # 16 of 15 to 35


def test_arms_are_told_with_all_their_updates(analysis: Analysis) -> None:
    rows = table(analysis, "AP, 95% over seeds")
    assert [row["updates"] for row in rows.values()] == ["100", "200", "300", "200"]
    method = rows["the method"]
    assert (method["AP"], method["AP50"], method["APl"]) == ("35.0", "62.0", "-")
    assert method["AP, 95% over seeds"] == "-28.5 to 98.5"  # 35 -+ 12.7062 * 7.071 / sqrt(2)
    assert table(analysis, "disc")["teacher on"]["disc"] == "16.0"
    shares = table(analysis, "25%")["the method"]
    assert (shares["25%"], shares["50%"], shares["100%"]) == ("15.0", "15.0", "35.0")


def test_curves_begin_after_the_updates_of_earlier_stages(
    analysis: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(comparison_page, "curve_chart", lambda lines, title: drawn.append(lines))
    page_blocks(analysis)
    ((method, scratch, longer, teacher),) = drawn
    assert method.points == ((150, 15.0, 10.0, 20.0), (200, 35.0, 30.0, 40.0))
    assert scratch.points == ((50, 6.0, 5.0, 7.0), (100, 25.0, 24.0, 26.0))
    assert longer.points == ((100, 30.0, 30.0, 30.0), (200, 50.0, 49.0, 51.0))
    assert teacher.points == ((200, 11.0, 10.0, 12.0), (300, 16.0, 14.0, 18.0))


def test_a_run_is_its_last_evaluation_and_all_before(tmp_path: Path) -> None:
    """Rows of training steps are no evaluations, and of two of one step the later one counts."""
    rows = [
        {"step": 50, "loss": 1.5, "AP": 99.0},
        {"step": 50, "AP": 3.0},
        {"step": 50, "AP": 4.0},
        {"step": 100, "loss": 1.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"step": 100, "results": {"AP": 8.0, "APl": None}}
    (tmp_path / "results.json").write_text(json.dumps(summary))
    results, curve = read_run(SimpleNamespace(folder=tmp_path))
    assert curve == ((50, 4.0), (100, 8.0))
    assert results["AP"] == 8.0
    assert math.isnan(results["APl"])
