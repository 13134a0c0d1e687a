"""What the finished stages of a comparison hold, read from their folders."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from predet.data.dataset import DetectionDataset
from predet.data.formats.coco_json import to_content
from predet.engine.comparison import Training, feeding
from predet.engine.comparison_stages import Resolved, StageResolver
from predet.engine.stages import StageRecord, finished_record
from predet.evaluation.coco import RESULTS_FILE
from predet.evaluation.comparison import Run
from predet.evaluation.leakage import Copy, LeakageReport, find_copies
from predet.evaluation.resampling import Matches, match_images, resampled_ap

logger = logging.getLogger(__name__)

TOLERANCE = 0.01  # AP points between what a run reported and its stored detections


class Cost(NamedTuple):
    """A finished stage and what it took."""

    stage: Resolved
    record: StageRecord
    used_by: tuple[str, ...]  # arms

    @property
    def updates(self) -> int:
        return self.stage.config.updates if isinstance(self.stage.config, Training) else 0


class Results(NamedTuple):
    """Everything that the page is made of, apart from statistics."""

    runs: tuple[Run, ...]
    run_stages: tuple[tuple[str, ...], ...]  # of each run, in its order
    costs: tuple[Cost, ...]
    missing: int  # cells that have not finished


def collect(resolver: StageResolver) -> Results:
    """Read every arm, label budget and seed whose stages have all finished."""
    comparison = resolver.comparison
    truth = to_content(resolver.dataset("test"))
    records: dict[str, StageRecord | None] = {}
    used_by: dict[str, dict[str, None]] = {}
    matches: dict[str, Any] = {}
    runs, run_stages, missing = [], [], 0
    for cell in comparison.cells:
        for arm in comparison.arms:
            chain = resolver.chain(arm, cell)
            stages = resolver.closure(chain)
            for stage in stages:
                used_by.setdefault(stage.name, {})[arm] = None
                if stage.name not in records:
                    records[stage.name] = _record(stage, resolver.folder)
            if any(records[stage.name] is None for stage in stages if stage.command):
                missing += 1
                continue
            last = chain[-1]
            results, curve = read_run(last)
            if last.name not in matches:
                matches[last.name] = match_images(truth, _detections(last))
            _check_detections(last, results["AP"], matches[last.name])
            total = sum(s.updates for s in feeding(comparison.arms[arm], comparison.stages))
            earlier = total - last.config.updates
            labels = str(cell.labels)
            runs.append(Run(arm, labels, cell.seed, results, curve, earlier, matches[last.name]))
            run_stages.append(tuple(stage.name for stage in stages))
    costs = tuple(
        Cost(resolver.stages[name], record, tuple(used_by[name]))
        for name, record in records.items()
        if record is not None
    )
    return Results(tuple(runs), tuple(run_stages), costs, missing)


def read_run(stage: Resolved) -> tuple[dict[str, float], tuple[tuple[int, float], ...]]:
    """Metrics at the end of a training, and AP at each of its evaluations."""
    summary = json.loads((stage.folder / "results.json").read_text())
    curve: dict[int, float] = {}
    for line in (stage.folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "AP" in row and "loss" not in row:
            curve[row["step"]] = _number(row["AP"])
    results = {name: _number(value) for name, value in summary["results"].items()}
    curve[summary["step"]] = results["AP"]
    return results, tuple(sorted(curve.items()))


def check_leakage(resolver: StageResolver) -> LeakageReport:
    """Copies of test images in the other data sets; kept, for it reads every image.

    What is kept is used as long as the keys and annotations of the data sets are the same.
    """
    names = [name for name in resolver.comparison.data if name != "test"]
    fingerprints = {name: resolver.fingerprint(name) for name in ("test", *names)}
    path = resolver.folder.parent / "leakage.json"
    if path.exists():
        known = json.loads(path.read_text())
        if known["fingerprints"] == fingerprints:
            report = known["report"]
            return LeakageReport(**{**report, "copies": tuple(Copy(*c) for c in report["copies"])})
    others: dict[str, DetectionDataset] = {name: resolver.dataset(name) for name in names}
    report = find_copies(resolver.dataset("test"), others)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(
        path, json.dumps({"fingerprints": fingerprints, "report": report._asdict()}, indent=2)
    )
    return report


def write_text(path: Path, text: str) -> None:
    """Write beside and rename, so that a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")  # others may write it as well
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _record(stage: Resolved, folder: Path) -> StageRecord | None:
    return finished_record(stage.stage(), folder) if stage.command else None


def _detections(stage: Resolved) -> list[dict[str, Any]]:
    return json.loads((stage.folder / "evaluation" / RESULTS_FILE).read_text())


def _check_detections(stage: Resolved, reported: float, matches: Matches) -> None:
    """Intervals are of the stored detections, so these must have the AP that was reported."""
    ones = np.ones((1, len(matches.image_ids)), dtype=np.int64)
    stored = float(resampled_ap(matches, ones)[0, 0])
    if abs(stored - reported) > TOLERANCE:
        logger.warning(
            "%s reported AP %.2f, its stored detections have %.2f (up to 100 an image and class)",
            stage.name,
            reported,
            stored,
        )


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
