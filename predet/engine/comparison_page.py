"""The page of a comparison: verdicts, tables, charts and costs as blocks of `visualize.page`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from predet.engine.comparison import Comparison
from predet.engine.comparison_results import Cost, Results
from predet.evaluation.comparison import (
    CONTROLS,
    Difference,
    Run,
    Verdict,
    mean_curve,
    updates_to_reach,
)
from predet.evaluation.leakage import LeakageReport
from predet.evaluation.statistics import Interval, t_interval
from predet.visualize.page import Block, Figures, Folded, Heading, Note, Table, Text
from predet.visualize.svg import CurveLine, IntervalRow, curve_chart, interval_chart

SHOWN = ("AP", "AP50", "AP75", "APs", "APm", "APl")
SHARES = (0.25, 0.5, 1.0)  # of fine-tuning, at which AP is listed
LETTER_COLORS = {"a": 6, "b": 1, "c": 2, "d": 3, "e": 4}
METHOD = (
    "AP is COCO's, in percent. Each seed draws its own labelled images, the same for all arms, and "
    "sets initial weights and the order of the data; differences are between runs of one seed. "
    "Over the seeds there is a 95% t interval, over the test images a 95% bootstrap. It helped "
    "means: both lie above 0 against (b), scratch trained for as many updates as pre-training and "
    "fine-tuning together, and against (c), the teacher trained on for as many. Updates count "
    "alike whatever they train; those of a teacher are not counted to its student, which is why "
    "(c) is asked for."
)
NOT_SHOWN = (
    "What these numbers do not show: other data, other sizes of model, other lengths of training; "
    "whether learning rates fit all arms equally well (they are the same). With many arms, one "
    "that looks best looks a little better than it is: an interval is wrong one time in twenty."
)


class Analysis(NamedTuple):
    """What the page is made of."""

    comparison: Comparison
    results: Results
    differences: tuple[Difference, ...]
    verdicts: tuple[Verdict, ...]
    leakage: LeakageReport | None
    test_images: int
    about: Mapping[str, str]


def page_blocks(analysis: Analysis) -> list[Block]:
    """All blocks of the page, top to bottom."""
    found = analysis
    labels = list(dict.fromkeys(run.labels for run in found.results.runs))
    blocks: list[Block] = [Text(_introduction(found))]
    if found.results.missing:
        number = found.results.missing
        blocks.append(Note("warning", f"{number} runs have not finished: this page is a part."))
    blocks.append(Heading("Did it help?"))
    blocks += [Note(verdict.answer, verdict.sentence) for verdict in found.verdicts]
    blocks += _leakage_note(found.leakage)
    for name in labels:
        where = f" ({name})" if len(labels) > 1 else ""
        blocks += [Heading(f"AP of each arm{where}"), *_results(found, name)]
        blocks += [Heading(f"Differences from the controls{where}"), *_differences(found, name)]
        blocks += [Heading(f"Learning curves{where}"), *_curves(found, name)]
    blocks += [Heading("Cost"), *_costs(found.results.costs)]
    blocks += [Heading("How it was made"), Text(METHOD), Text(NOT_SHOWN)]
    blocks.append(Table(("", ""), tuple((k, v) for k, v in found.about.items())))
    blocks.append(Folded("All runs", (_all_runs(found),)))
    return blocks


def _introduction(found: Analysis) -> str:
    comparison = found.comparison
    labels = " and ".join(str(budget) for budget in comparison.labels)
    return (
        f"{len(comparison.arms)} arms, {labels}, {comparison.seeds} "
        f"seed{'s' if comparison.seeds > 1 else ''}, {found.test_images} test images."
    )


def _leakage_note(leakage: LeakageReport | None) -> list[Block]:
    if leakage is None:
        return []
    sets = ", ".join(f"{name} ({count})" for name, count in leakage.searched.items())
    unread = f" {leakage.unreadable} images could not be read." if leakage.unreadable else ""
    if not leakage.copies:
        text = f"Leakage check: no copies of the {leakage.test_images} test images in {sets}."
        return [Text(text + unread)]
    images = len({copy.test_key for copy in leakage.copies})
    rows = tuple(
        (c.test_key, c.set_name, c.key, c.how or "as it is", f"{c.correlation:.3f}")
        for c in leakage.copies
    )
    header = ("test image", "found in", "as", "how", "correlation")
    return [
        Note(
            "warning",
            f"{images} of {leakage.test_images} test images are also among the images of training "
            f"(searched: {sets}): AP may be too high, for all arms or for some.{unread}",
        ),
        Folded("Copies of test images", (Table(header, rows),)),
    ]


def _results(found: Analysis, labels: str) -> list[Block]:
    by_arm = {arm.name: _runs(found, arm.name, labels) for arm in found.comparison.compared}
    rows, chart_rows = [], []
    for arm in found.comparison.compared:
        runs = by_arm[arm.name]
        if not runs:
            continue
        values = [run.results["AP"] for run in runs]
        interval = t_interval(values) if np.isfinite(values).all() else None
        rows.append(
            (
                arm.title,
                *(_mean_text([run.results[name] for run in runs]) for name in SHOWN),
                _interval_text(interval, signed=False),
                str(runs[0].updates),
                str(len(runs)),
            )
        )
        if interval is not None:
            chart_rows.append(
                IntervalRow(
                    arm.title,
                    interval.mean,
                    interval.low if len(runs) > 2 else math.nan,
                    interval.high if len(runs) > 2 else math.nan,
                    dots=tuple(values),
                    color=0 if arm.controls else 6,
                )
            )
    chart = interval_chart(chart_rows, title=f"AP of each arm, {labels}")
    header = ("arm", *SHOWN, "AP, 95% over seeds", "updates", "seeds")
    note = "Dots: seeds. Filled: their mean. Line: 95% t interval (from 3 seeds on)."
    return [
        Figures(((f"AP on the test images. {note}", chart),)),
        Table(header, tuple(rows), "Means over the seeds"),
        Folded("AP by class", (_by_class(found, labels),)),
    ]


def _by_class(found: Analysis, labels: str) -> Table:
    names = [key for key in found.results.runs[0].results if key.startswith("AP/")]
    rows = []
    for arm in found.comparison.compared:
        runs = _runs(found, arm.name, labels)
        if runs:
            cells = (_mean_text([run.results[name] for run in runs]) for name in names)
            rows.append((arm.title, *cells))
    header = ("arm", *(name.removeprefix("AP/") for name in names))
    return Table(header, tuple(rows), "Means over the seeds")


def _differences(found: Analysis, labels: str) -> list[Block]:
    charts, rows = [], []
    ap = [d for d in found.differences if d.metric == "AP" and d.labels == labels]
    for arm in found.comparison.compared:
        own = [d for d in ap if d.arm == arm.name]
        if own:
            chart = interval_chart(
                [_difference_row(d) for d in own], title=f"{arm.title}, {labels}", zero=True
            )
            charts.append((arm.title, chart))
        rows += [_difference_cells(found, arm.title, d) for d in own]
    header = (
        *("arm", "against", "AP", "95% over seeds", "95% over test images", "AP50"),
        *("by seed", "updates to its AP"),
    )
    explanation = (
        "Thin: 95% t interval over the seeds. Thick: 95% bootstrap over the test images. Small "
        "dots: seeds. The last column of the table says after how many updates of fine-tuning the "
        "arm first had the control's final AP, pre-training not counted."
    )
    return [Text(explanation), Figures(tuple(charts)), Table(header, tuple(rows))]


def _difference_row(difference: Difference) -> IntervalRow:
    return IntervalRow(
        f"against ({difference.letter}) {CONTROLS[difference.letter]}",
        difference.seeds.mean,
        difference.seeds.low,
        difference.seeds.high,
        difference.images.low,
        difference.images.high,
        tuple(difference.by_seed.values()),
        LETTER_COLORS[difference.letter],
    )


def _difference_cells(found: Analysis, title: str, difference: Difference) -> tuple[str, ...]:
    same = difference._replace(metric="AP50")
    ap50 = next(
        (d for d in found.differences if d[:5] == same[:5]),
        None,
    )
    target = mean_curve(_runs(found, difference.control, difference.labels))[-1][1]
    reached = updates_to_reach(mean_curve(_runs(found, difference.arm, difference.labels)), target)
    return (
        title,
        f"({difference.letter}) {CONTROLS[difference.letter]}",
        f"{difference.seeds.mean:+.1f}",
        _interval_text(difference.seeds),
        _interval_text(difference.images),
        f"{ap50.seeds.mean:+.1f}" if ap50 else "",
        ", ".join(f"{value:+.1f}" for value in difference.by_seed.values()),
        "not reached" if reached is None else f"{reached:.0f}",
    )


def _curves(found: Analysis, labels: str) -> list[Block]:
    titles = {arm.name: arm.title for arm in found.comparison.compared}
    charts = []
    for arm in found.comparison.compared:
        if not arm.controls or not _runs(found, arm.name, labels):
            continue
        lines = [_curve_line(_runs(found, arm.name, labels), arm.title, 0, False)]
        for letter in ("a", "b", "c"):
            runs = _runs(found, arm.controls[letter], labels)
            if runs:
                label = f"({letter}) {titles[arm.controls[letter]]}"
                lines.append(_curve_line(runs, label, LETTER_COLORS[letter], True))
        charts.append((arm.title, curve_chart(lines, title=f"{arm.title}, {labels}")))
    text = (
        "AP against all updates, those of pre-training included: a line begins where its "
        "fine-tuning was first evaluated. Bands: lowest to highest seed."
    )
    return [Text(text), Figures(tuple(charts)), Folded("Numbers", (_curve_table(found, labels),))]


def _curve_line(runs: Sequence[Run], label: str, color: int, dashed: bool) -> CurveLine:
    points = []
    for updates, mean in mean_curve(runs):
        values = [dict(run.curve)[updates] for run in runs]
        points.append((runs[0].earlier_updates + updates, mean, min(values), max(values)))
    return CurveLine(label, tuple(points), color, dashed)


def _curve_table(found: Analysis, labels: str) -> Table:
    rows = []
    for arm in found.comparison.compared:
        curve = mean_curve(_runs(found, arm.name, labels))
        if curve:
            last = curve[-1][0]
            at = {share: min(curve, key=lambda p: abs(p[0] - share * last)) for share in SHARES}
            rows.append((arm.title, *(f"{at[share][1]:.1f}" for share in SHARES)))
    header = ("arm", *(f"{100 * share:.0f}%" for share in SHARES))
    return Table(header, tuple(rows), "AP at these shares of fine-tuning, mean of the seeds")


def _costs(costs: Sequence[Cost]) -> list[Block]:
    """One row for each kind of stage: a stage of several seeds is one kind."""
    kinds: dict[tuple[str, int, tuple[str, ...]], list[Cost]] = {}
    for cost in costs:
        kind = cost.stage.name.rsplit("-", 1)[0]
        kinds.setdefault((kind, cost.updates, cost.used_by), []).append(cost)
    rows = []
    for (kind, updates, used_by), group in kinds.items():
        rows.append(
            (
                kind,
                str(updates or ""),
                str(len(group)),
                _hours(sum(c.record.seconds for c in group)),
                _hours(sum(c.record.core_seconds for c in group)),
                ", ".join(used_by),
            )
        )
    total = (
        "all",
        str(sum(c.updates for c in costs)),
        str(len(costs)),
        _hours(sum(c.record.seconds for c in costs)),
        _hours(sum(c.record.core_seconds for c in costs)),
        "",
    )
    header = ("stage", "updates", "runs", "time", "core time", "used by")
    lost = sum(c.record.lost for c in costs)
    text = (
        "Time is that of a stage's process (of its GPU, where it has one), core time what all its "
        "threads and workers took of the processor; both are sums over the runs. A stage that "
        "several arms use was run once."
    )
    if lost:
        text += f" Not in them: {lost} attempts that were killed together with the comparison."
    return [Text(text), Table(header, (*rows, total))]


def _all_runs(found: Analysis) -> Table:
    rows = tuple(
        (
            *(run.arm, run.labels, str(run.seed), str(run.updates)),
            *(_mean_text([run.results[name]]) for name in SHOWN),
        )
        for run in found.results.runs
    )
    return Table(("arm", "labels", "seed", "updates", *SHOWN), rows)


def _runs(found: Analysis, arm: str, labels: str) -> list[Run]:
    return [run for run in found.results.runs if run.arm == arm and run.labels == labels]


def _mean_text(values: Sequence[float]) -> str:
    finite = [value for value in values if math.isfinite(value)]
    return f"{np.mean(finite):.1f}" if finite else "-"


def _interval_text(interval: Interval | None, *, signed: bool = True) -> str:
    if interval is None or not interval.known:
        return "-"
    sign = "+" if signed else ""
    return f"{interval.low:{sign}.1f} to {interval.high:{sign}.1f}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
