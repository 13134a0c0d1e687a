"""Did it help? Paired differences between arms and controls, with intervals, and a verdict.

An arm that pre-trains has seen more updates than one that does not, and a student has seen its
teacher. So better than scratch is not enough: "it helped" means that the arm beats both scratch
trained for as many updates as pre-training and fine-tuning together, and its teacher fine-tuned on
for that many. Two things vary from one experiment to the next: the seed (labelled images, initial
weights, order of the data), for which there is a t interval over the seeds' paired differences, and
the test images, for which there is a bootstrap. A verdict needs both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from predet.evaluation.resampling import Matches, resample_weights, resampled_ap
from predet.evaluation.statistics import CONFIDENCE, Interval, seeds_needed, t_interval

# What the controls are called; as long: as many updates as pre-training and fine-tuning together.
# A verdict needs those of `DECISIVE`.
CONTROLS = {
    "a": "scratch",
    "b": "scratch for as long",
    "c": "teacher or scratch, trained on",
    "d": "boxes of other images",
    "e": "given checkpoint",
}
DECISIVE = ("b", "c")
FLOOR = 2.0  # AP of detectors that have hardly begun to learn: differences tell nothing there
METRICS = {"AP": 0, "AP50": 1}  # -> column of `resampled_ap`
RESAMPLES = 1000


class Run(NamedTuple):
    """One finished arm for one label budget and seed."""

    arm: str
    labels: str  # the label budget, for example "20 images"
    seed: int
    results: Mapping[str, float]  # metrics of `average_precision`
    curve: tuple[tuple[int, float], ...]  # updates of the last stage -> AP, at each evaluation
    earlier_updates: int  # of the stages before the last
    matches: Matches

    @property
    def updates(self) -> int:
        return self.earlier_updates + self.curve[-1][0]


class Arm(NamedTuple):
    """What an arm is compared with; a control is compared with nothing."""

    name: str
    title: str
    controls: Mapping[str, str]  # letter of `CONTROLS` -> name of the arm that is this control


class Difference(NamedTuple):
    """An arm minus one of its controls, in points of a metric."""

    arm: str
    control: str
    letter: str
    labels: str
    metric: str
    by_seed: Mapping[int, float]
    seeds: Interval  # t interval over the seeds
    images: Interval  # bootstrap over the test images, mean of the seeds
    level: float  # of the control, mean of the seeds


class Verdict(NamedTuple):
    arm: str
    labels: str
    answer: str  # "yes", "no" or "cannot tell"
    sentence: str


def differences(
    runs: Sequence[Run],
    arms: Sequence[Arm],
    *,
    metrics: Sequence[str] = ("AP", "AP50"),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Difference]:
    """All differences of arms to their controls, over the seeds that both have.

    Test images are drawn alike for all runs, so what is easy or hard about a draw cancels.

    Raises:
        ValueError: runs were evaluated on different images.
    """
    by_cell = {(run.arm, run.labels, run.seed): run for run in runs}
    images = {run.matches.image_ids for run in runs}
    if len(images) > 1:
        raise ValueError("the runs were not evaluated on the same test images")
    weights = resample_weights(len(images.pop()), resamples=resamples, seed=seed)
    columns = [METRICS[metric] for metric in metrics]
    drawn = {cell: resampled_ap(run.matches, weights)[:, columns] for cell, run in by_cell.items()}
    found = []
    for labels in dict.fromkeys(run.labels for run in runs):
        for arm, letter, control in _pairs(arms):
            seeds = sorted(
                s for a, b, s in by_cell if a == arm and b == labels and (control, b, s) in by_cell
            )
            for column, metric in enumerate(metrics if seeds else ()):
                pairs = {s: ((arm, labels, s), (control, labels, s)) for s in seeds}
                by_seed = {
                    s: by_cell[one].results[metric] - by_cell[other].results[metric]
                    for s, (one, other) in pairs.items()
                }
                change = np.mean(
                    [
                        drawn[one][:, column] - drawn[other][:, column]
                        for one, other in pairs.values()
                    ],
                    axis=0,
                )
                over_seeds = t_interval(list(by_seed.values()))
                over_images = percentile_interval(change, over_seeds.mean)
                level = float(np.mean([by_cell[c].results[metric] for _, c in pairs.values()]))
                found.append(
                    Difference(
                        arm=arm,
                        control=control,
                        letter=letter,
                        labels=labels,
                        metric=metric,
                        by_seed=by_seed,
                        seeds=over_seeds,
                        images=over_images,
                        level=level,
                    )
                )
    return found


def percentile_interval(
    values: np.ndarray, mean: float, *, confidence: float = CONFIDENCE
) -> Interval:
    """The bootstrap interval between two percentiles; draws that are not defined do not count."""
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return Interval(mean, float(low), float(high))


def verdicts(
    found: Sequence[Difference], arms: Sequence[Arm], *, test_images: int, matters: float = 1.0
) -> list[Verdict]:
    """One sentence for each arm with controls and each label budget, from the intervals of AP.

    Nothing can be told where neither an arm nor its controls have learned: have an AP of `FLOOR`.

    Args:
        matters: the smallest gain in AP that would be worth it. "No" says that a gain as large as
            this is excluded, by seeds and by test images.
    """
    result = []
    for labels in dict.fromkeys(difference.labels for difference in found):
        for arm in arms:
            own = {
                d.letter: d
                for d in found
                if d.metric == "AP" and d.arm == arm.name and d.labels == labels
            }
            if own:
                result.append(_verdict(arm, labels, own, test_images, matters))
    return result


def _verdict(
    arm: Arm, labels: str, own: Mapping[str, Difference], test_images: int, matters: float
) -> Verdict:
    where = f"{arm.title}, {labels}"
    missing = [f"({letter}) {CONTROLS[letter]}" for letter in DECISIVE if letter not in own]
    if missing:
        text = f"{where}: cannot tell: the control {' and '.join(missing)} is missing."
        return Verdict(arm.name, labels, "cannot tell", text)
    decisive = [own[letter] for letter in DECISIVE]
    highest = max(level for d in decisive for level in (d.level, d.level + d.seeds.mean))
    if highest < FLOOR:
        text = (
            f"{where}: cannot tell: neither it nor its controls have learned enough yet "
            f"(AP at most {highest:.1f}); train for longer."
        )
        return Verdict(arm.name, labels, "cannot tell", text)
    if all(_excludes_loss(d.seeds) and _excludes_loss(d.images) for d in decisive):
        text = f"{where}: it helped: {_against(decisive)}."
        return Verdict(arm.name, labels, "yes", text)
    beaten = [d for d in decisive if d.seeds.high < matters and d.images.high < matters]
    if beaten:
        text = (
            f"{where}: no: {_against(beaten)}; "
            f"a gain of {matters:g} AP or more is excluded at {100 * CONFIDENCE:.0f}%."
        )
        return Verdict(arm.name, labels, "no", text)
    open_questions = [
        d for d in decisive if not (_excludes_loss(d.seeds) and _excludes_loss(d.images))
    ]
    text = (
        f"{where}: cannot tell: {_against(open_questions)}; {_needs(open_questions, test_images)}."
    )
    return Verdict(arm.name, labels, "cannot tell", text)


def _excludes_loss(interval: Interval) -> bool:
    return interval.low > 0  # False for NaN


def _against(found: Sequence[Difference]) -> str:
    return " and ".join(
        f"AP {d.seeds.mean:+.1f} against ({d.letter}) {CONTROLS[d.letter]} "
        f"({_range(d.seeds)} over {_count(len(d.by_seed), 'seed')}, "
        f"{_range(d.images)} over test images)"
        for d in found
    )


def _range(interval: Interval) -> str:
    return f"{interval.low:+.1f} to {interval.high:+.1f}" if interval.known else "no interval"


def _needs(found: Sequence[Difference], test_images: int) -> str:
    """What it would take to tell, if mean and spread are as observed."""
    if any(len(d.by_seed) < 2 for d in found):
        return "needs at least 3 seeds, one has no interval"
    seeds = [seeds_needed(list(d.by_seed.values())) for d in found if _undecided(d.seeds)]
    if None in seeds:
        return "no affordable number of seeds would tell: the difference is too small"
    if seeds:  # more than there are: of an interval that just misses 0 the power is below 0.7
        most = max(number for number in seeds if number is not None)
        return f"needs about {_count(most, 'seed')}"
    images = max(images_needed(d.images, test_images) for d in found)
    return f"the seeds agree, but the test set is small: needs about {images} test images"


def _undecided(interval: Interval) -> bool:
    return not (interval.low > 0 or interval.high < 0)


def images_needed(interval: Interval, test_images: int) -> int:
    """Test images with which the interval's half width would be at most its mean."""
    reach = (interval.high - interval.low) / 2
    share = reach / max(abs(interval.mean), 1e-9)
    return min(10**6, math.ceil(test_images * max(share, 1.0) ** 2))


def updates_to_reach(curve: Sequence[tuple[int, float]], target: float) -> float | None:
    """Updates of the last stage after which AP first reaches `target`, or None.

    Between two evaluations AP is taken as rising in a straight line; before the first one nothing
    is known, so the answer is never below that.
    """
    before: tuple[int, float] | None = None
    for updates, value in curve:
        if value >= target:
            if before is None or value == before[1]:
                return float(updates)
            share = (target - before[1]) / (value - before[1])
            return before[0] + share * (updates - before[0])
        before = (updates, value)
    return None


def mean_curve(runs: Sequence[Run]) -> tuple[tuple[int, float], ...]:
    """Mean AP over seeds at each evaluation that all of them have."""
    by_step: dict[int, list[float]] = {}
    for run in runs:
        for updates, value in run.curve:
            by_step.setdefault(updates, []).append(value)
    return tuple(
        (updates, float(np.mean(values)))
        for updates, values in sorted(by_step.items())
        if len(values) == len(runs)
    )


def _pairs(arms: Sequence[Arm]) -> list[tuple[str, str, str]]:
    return [
        (arm.name, letter, control)
        for arm in arms
        for letter, control in sorted(arm.controls.items())
    ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
