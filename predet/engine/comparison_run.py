"""Planning, running and reporting a comparison; `tools/compare.py` is its command line."""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from predet.checkpoint import Checkpoints
from predet.engine.build import describe_machine
from predet.engine.comparison import Training
from predet.engine.comparison_page import Analysis, page_blocks
from predet.engine.comparison_results import Results, check_leakage, collect, write_text
from predet.engine.comparison_stages import Resolved, StageResolver
from predet.engine.metrics import without_nan
from predet.engine.stages import Stage, StageRecord, finished_record, run_stages
from predet.evaluation.comparison import RESAMPLES, differences, verdicts
from predet.visualize.page import to_html, to_markdown

logger = logging.getLogger(__name__)

PAGE = "comparison"  # .md, .html and .json


class PlannedStage(NamedTuple):
    """A stage with who uses it and what it is expected to take."""

    stage: Resolved
    used_by: tuple[str, ...]
    finished: StageRecord | None
    seconds: float | None  # expected, of what is not finished; None: nothing is known


def plan(resolver: StageResolver) -> list[PlannedStage]:
    """Every stage in the order of running, each once."""
    used_by: dict[str, dict[str, None]] = {}
    for cell in resolver.comparison.cells:
        for arm in resolver.comparison.arms:
            for stage in resolver.closure(resolver.chain(arm, cell)):
                used_by.setdefault(stage.name, {})[arm] = None
    stages = [stage for stage in resolver.stages.values() if stage.command is not None]
    records = {stage.name: finished_record(stage.stage(), resolver.folder) for stage in stages}
    measured: dict[str, list[float]] = {}
    for stage in stages:
        record = records[stage.name]
        if record is not None:
            measured.setdefault(_kind(stage), []).append(record.core_seconds / _size(stage))
    known = {kind: sum(values) / len(values) for kind, values in measured.items()}
    rates = {**resolver.comparison.timing, **known}
    return [
        PlannedStage(
            stage,
            tuple(used_by[stage.name]),
            records[stage.name],
            rates[_kind(stage)] * _size(stage) if _kind(stage) in rates else None,
        )
        for stage in stages
    ]


def plan_text(stages: list[PlannedStage], *, jobs: int) -> str:
    """The plan for people: stages of several seeds and label budgets in one line."""
    groups: dict[tuple[str, int, tuple[str, ...]], list[PlannedStage]] = {}
    for planned in stages:
        size = _size(planned.stage) if isinstance(planned.stage.config, Training) else 0
        groups.setdefault((_kind(planned.stage), size, planned.used_by), []).append(planned)
    lines = [f"{'stage':<22}{'updates':>8}{'runs':>6}{'done':>6}{'minutes':>9}  used by"]
    for (kind, updates, used_by), group in groups.items():
        done = sum(planned.finished is not None for planned in group)
        minutes = _minutes([planned for planned in group if planned.finished is None])
        numbers = f"{updates or '':>8}{len(group):>6}{done:>6}{minutes:>9}"
        lines.append(f"{kind:<22}{numbers}  {', '.join(used_by)}")
    left = [planned for planned in stages if planned.finished is None]
    updates = sum(
        _size(planned.stage) for planned in left if isinstance(planned.stage.config, Training)
    )
    known = [planned.seconds for planned in left if planned.seconds is not None]
    lines.append("")
    lines.append(
        f"{len(stages)} stages, {len(stages) - len(left)} done; left: {len(left)} stages, "
        f"{updates} updates"
    )
    if known:
        least = "" if len(known) == len(left) else "at least "
        core, wall = sum(known) / 3600, sum(known) / 3600 / jobs
        lines.append(
            f"about {least}{core:.1f} core-hours: {wall:.1f} hours with {jobs} "
            f"job{'s' if jobs > 1 else ''} on a core each"
        )
    return "\n".join(lines)


def run(resolver: StageResolver, *, jobs: int) -> None:
    """Run every stage that has not finished, as many at a time as `jobs` says.

    Raises:
        StageFailed: stages failed or were stopped; calling again goes on from there.
    """
    planned = plan(resolver)
    left = {p.stage.name: p.seconds or 0.0 for p in planned if p.finished is None}
    logger.info("%d stages, %d of them are done", len(planned), len(planned) - len(left))
    names = {p.stage.name: f"{p.stage.name} (for {', '.join(p.used_by)})" for p in planned}

    folders = {
        p.stage.name: p.stage.folder for p in planned if isinstance(p.stage.config, Training)
    }

    def report(stage: Stage, record: StageRecord) -> None:
        left.pop(stage.name, None)
        if stage.name in folders:  # tens of trainings would fill the disk
            Checkpoints(folders[stage.name]).keep_last()
        rest = datetime.timedelta(seconds=round(sum(left.values()) / jobs))
        logger.info(
            "finished %s in %.0f s; %d stages left, about %s",
            names[stage.name],
            record.seconds,
            len(left),
            rest,
        )

    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    run_stages(
        [p.stage.stage() for p in planned],
        resolver.folder,
        jobs=jobs,
        log_files=True,
        made_by=_maker(resolver),
        environment={} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": threads},
        on_finish=report,
    )


def write_page(
    resolver: StageResolver, output: Path, *, command: str, leakage: bool = True
) -> Analysis:
    """Write `comparison.md`, `.html` and `.json` from the stages that have finished.

    Raises:
        ValueError: not a single arm has finished.
    """
    comparison = resolver.comparison
    results = collect(resolver)
    if not results.runs:
        raise ValueError(f"no arm has finished in {output}: there is nothing to report")
    found = tuple(differences(results.runs, comparison.compared, resamples=RESAMPLES))
    images = len(resolver.dataset("test"))
    analysis = Analysis(
        comparison=comparison,
        results=results,
        differences=found,
        verdicts=tuple(
            verdicts(found, comparison.compared, test_images=images, matters=comparison.matters)
        ),
        leakage=check_leakage(resolver) if leakage else None,
        test_images=images,
        about=_about(resolver, results, command),
    )
    blocks = page_blocks(analysis)
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / f"{PAGE}.md", to_markdown(comparison.title, blocks))
    write_text(output / f"{PAGE}.html", to_html(comparison.title, blocks))
    write_text(output / f"{PAGE}.json", json.dumps(_as_json(analysis), indent=1))
    return analysis


def _as_json(analysis: Analysis) -> dict[str, Any]:
    """Rows for programs: one for each run, difference, verdict and stage."""
    results = analysis.results
    rows = [
        {
            "arm": run.arm,
            "labels": run.labels,
            "seed": run.seed,
            "updates": run.updates,
            "results": dict(run.results),
            "curve": [list(point) for point in run.curve],
            "stages": list(stages),
        }
        for run, stages in zip(results.runs, results.run_stages, strict=True)
    ]
    costs = [
        {
            "stage": cost.stage.name,
            "config": dataclasses.asdict(cost.stage.config),
            "seed": cost.stage.seed,
            "labels": cost.stage.labels,
            "seconds": cost.record.seconds,
            "core_seconds": cost.record.core_seconds,
            "lost_attempts": cost.record.lost,
            "used_by": list(cost.used_by),
        }
        for cost in results.costs
    ]
    return without_nan(
        {
            "title": analysis.comparison.title,
            "about": dict(analysis.about),
            "arms": [arm._asdict() for arm in analysis.comparison.compared],
            "rows": rows,
            "missing": results.missing,
            "differences": [
                {
                    **difference._asdict(),
                    "seeds": difference.seeds._asdict(),
                    "images": difference.images._asdict(),
                }
                for difference in analysis.differences
            ],
            "verdicts": [verdict._asdict() for verdict in analysis.verdicts],
            "leakage": _leakage_json(analysis),
            "stages": costs,
        }
    )


def _leakage_json(analysis: Analysis) -> dict[str, Any] | None:
    if analysis.leakage is None:
        return None
    copies = [copy._asdict() for copy in analysis.leakage.copies]
    return {**analysis.leakage._asdict(), "copies": copies}


def _about(resolver: StageResolver, results: Results, command: str) -> dict[str, str]:
    made = datetime.datetime.now().astimezone().isoformat(timespec="minutes")
    makers = dict.fromkeys(cost.record.made_by or "not recorded" for cost in results.costs)
    sections = {
        f"data.{name}": f"{resolver.dataset(name).name}: {len(resolver.dataset(name))} images"
        for name in resolver.comparison.data
    }
    return {
        "command": command,
        "stages made by": "; ".join(makers),
        "page made": f"{made} by {_maker(resolver)}",
        **sections,
    }


def _maker(resolver: StageResolver) -> str:
    """Code and machine."""
    return f"{_commit(resolver.tools)}, {describe_machine()}"


def _commit(folder: Path) -> str:
    """The commit of the code, where it runs from a checkout."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return "no checkout"
    return f"commit {found.stdout.strip()}" if found.returncode == 0 else "no checkout"


def _kind(stage: Resolved) -> str:
    return stage.name.rsplit("-", 1)[0]


def _size(stage: Resolved) -> int:
    return stage.config.updates if isinstance(stage.config, Training) else 1


def _minutes(stages: list[PlannedStage]) -> str:
    known = [planned.seconds for planned in stages if planned.seconds is not None]
    return f"{sum(known) / 60:.0f}" if len(known) == len(stages) else "?"
