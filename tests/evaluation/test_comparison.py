"""Differences and verdicts: planted effects are found, planted nulls are not called gains."""

from __future__ import annotations

import numpy as np
import pytest

from predet.evaluation.comparison import (
    Arm,
    Difference,
    Run,
    differences,
    images_needed,
    mean_curve,
    percentile_interval,
    updates_to_reach,
    verdicts,
)
from predet.evaluation.resampling import ClassMatches, Matches, resample_weights
from predet.evaluation.statistics import Interval, t_interval

ARMS = (
    Arm("scratch", "scratch", {}),
    Arm("longer", "longer", {}),
    Arm("teacher_on", "teacher on", {}),
    Arm("method", "method", {"a": "scratch", "b": "longer", "c": "teacher_on"}),
)
IMAGES = 60


def matches(recall: np.ndarray) -> Matches:
    """One class, 5 objects an image, of which `recall` (I,) are found without a false alarm.

    All precisions are 1, so AP is about the mean of `recall`, whatever the threshold.
    """
    found = np.round(5 * recall).astype(int)
    image = np.repeat(np.arange(len(recall)), found)
    hit = np.ones((10, len(image)), bool)
    objects = np.full(len(recall), 5)
    one = ClassMatches(image=image, hit=hit, counts=hit, objects=objects)
    return Matches(tuple(range(len(recall))), (one,))


def run(arm: str, seed: int, recall: np.ndarray, labels: str = "20 images") -> Run:
    found = matches(recall)
    ap = 100 * float(np.round(5 * recall).mean() / 5)
    results = {"AP": ap, "AP50": ap, "AP75": ap}
    return Run(arm, labels, seed, results, ((50, ap / 2), (100, ap)), 0, found)


def experiment(rng: np.random.Generator, *, gain: float, seeds: int, images: int = IMAGES):
    """Arms whose AP depends on the image and the seed alike for all, on chance, and on the gain."""
    easy = rng.normal(0, 0.15, images)
    runs = []
    for seed in range(seeds):
        draw = rng.normal(0, 0.05)  # of labelled images: shared by all arms
        for arm in ARMS:
            level = 0.5 + draw + rng.normal(0, 0.01) + (gain if arm.name == "method" else 0)
            recall = np.clip(level + easy + rng.normal(0, 0.2, images), 0, 1)
            runs.append(run(arm.name, seed, recall))
    return runs


def answers(runs: list[Run], resamples: int = 100) -> list[str]:
    found = differences(runs, ARMS, resamples=resamples)
    return [v.answer for v in verdicts(found, ARMS, test_images=IMAGES)]


def test_differences_are_paired_by_seed() -> None:
    values = {"scratch": (10, 30), "longer": (12, 31), "teacher_on": (11, 33), "method": (15, 34)}
    runs = [
        run(arm, seed, np.full(IMAGES, value / 100 * 2))
        for arm, pair in values.items()
        for seed, value in enumerate(pair)
    ]
    runs = [r._replace(results={"AP": float(values[r.arm][r.seed])}) for r in runs]
    found = differences(runs, ARMS, metrics=("AP",), resamples=10)
    by_letter = {d.letter: d for d in found}
    assert by_letter["a"].by_seed == {0: 5, 1: 4}
    assert by_letter["b"].by_seed == {0: 3, 1: 3}
    assert by_letter["c"].by_seed == {0: 4, 1: 1}
    assert by_letter["c"].level == 22
    assert by_letter["c"].seeds == t_interval([4.0, 1.0])
    assert by_letter["c"].control == "teacher_on"


def test_only_seeds_that_both_arms_have_count() -> None:
    runs = experiment(np.random.default_rng(0), gain=0.1, seeds=3)
    del runs[-1]  # the method's last seed
    found = differences(runs, ARMS, metrics=("AP",), resamples=10)
    assert {tuple(d.by_seed) for d in found} == {(0, 1)}


def test_image_draws_are_those_of_each_metric_averaged_over_seeds() -> None:
    """AP50 knows more hits than the other thresholds; gains lie in other images for each seed."""
    rng = np.random.default_rng(7)
    weights = resample_weights(IMAGES, resamples=200, seed=0)
    runs, levels = [], {}
    for seed, (low, high) in enumerate([(0.2, 0.9), (0.5, 0.6)]):
        for arm, level in (("longer", low), ("method", high)):
            part = slice(0, 20) if seed else slice(30, 60)
            shares = np.full(IMAGES, low)
            shares[part] = level
            loose = rng.binomial(5, shares)  # of 5 objects, found at an IoU of 0.5
            strict = rng.binomial(loose, 0.5)  # and beyond
            image = np.repeat(np.arange(IMAGES), loose)
            first = np.arange(len(image)) - np.searchsorted(image, image) < strict[image]
            hit = np.stack([np.ones(len(image), bool), *[first] * 9])
            one = ClassMatches(image=image, hit=hit, counts=hit, objects=np.full(IMAGES, 5))
            found = Matches(tuple(range(IMAGES)), (one,))
            runs.append(Run(arm, "5%", seed, {"AP": 0.0, "AP50": 0.0}, ((1, 0.0),), 0, found))
            # Without a false alarm AP is the share of the 101 recall steps that are reached.
            ap50, beyond = (
                100 * (np.floor(100 * (weights @ hits) / (5 * IMAGES)) + 1) / 101
                for hits in (loose, strict)
            )
            levels[arm, seed] = {"AP": 0.1 * ap50 + 0.9 * beyond, "AP50": ap50}
    arms = (Arm("method", "method", {"b": "longer"}),)
    for difference in differences(runs, arms, resamples=200):
        name = difference.metric
        gain = sum(levels["method", s][name] - levels["longer", s][name] for s in (0, 1)) / 2
        ends = difference.images.low, difference.images.high
        assert ends == pytest.approx(np.percentile(gain, [2.5, 97.5]), abs=0.6)  # about a step


def test_a_planted_effect_is_found() -> None:
    rng = np.random.default_rng(1)
    assert [answers(experiment(rng, gain=0.2, seeds=5)) for _ in range(3)] == [["yes"]] * 3


def test_a_planted_null_is_not_called_a_gain() -> None:
    rng = np.random.default_rng(2)
    given = [answers(experiment(rng, gain=0.0, seeds=3))[0] for _ in range(25)]
    assert given.count("yes") == 0
    assert given.count("cannot tell") > 0


def test_more_updates_alone_are_not_called_a_gain() -> None:
    """Better than scratch, but only as good as the controls with as many updates."""
    rng = np.random.default_rng(3)
    given = []
    for _ in range(4):
        runs = experiment(rng, gain=0.0, seeds=4)
        low = [r for r in runs if r.arm == "scratch"]
        runs = [r for r in runs if r.arm != "scratch"]
        runs += [run("scratch", r.seed, np.full(IMAGES, 0.2)) for r in low]
        found = differences(runs, ARMS, metrics=("AP",), resamples=100)
        assert all(d.seeds.low > 0 for d in found if d.letter == "a")
        given += [v.answer for v in verdicts(found, ARMS, test_images=IMAGES)]
    assert "yes" not in given


def test_a_planted_loss_is_a_no() -> None:
    rng = np.random.default_rng(4)
    assert answers(experiment(rng, gain=-0.2, seeds=4)) == ["no"]


def test_bootstrap_interval_covers_the_truth() -> None:
    """Over many test sets from one population, 95% intervals hold the population's difference."""
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(160):
        common = rng.normal(0, 0.2, 80)
        first = np.clip(0.55 + common + rng.normal(0, 0.15, 80), 0, 1)
        second = np.clip(0.45 + common + rng.normal(0, 0.15, 80), 0, 1)
        runs = [run("method", 0, first), run("longer", 0, second)]
        pair = (Arm("method", "method", {"b": "longer"}),)
        (found,) = differences(runs, pair, metrics=("AP",), resamples=250)
        covered += found.images.low <= TRUE_DIFFERENCE <= found.images.high
    assert 0.89 <= covered / 160 <= 0.99


def _true_difference() -> float:
    rng = np.random.default_rng(6)
    common = rng.normal(0, 0.2, 400_000)
    levels = [
        np.clip(level + common + rng.normal(0, 0.15, len(common)), 0, 1) for level in (0.55, 0.45)
    ]
    first, second = (100 * np.round(5 * level).mean() / 5 for level in levels)
    return float(first - second)


TRUE_DIFFERENCE = _true_difference()


def difference(
    letter: str, by_seed: list[float], low: float, high: float, level: float = 20.0
) -> Difference:
    mean = float(np.mean(by_seed))
    seeds = t_interval(by_seed)
    pairs = dict(enumerate(by_seed))
    images = Interval(mean, low, high)
    return Difference("method", letter, letter, "5%", "AP", pairs, seeds, images, level)


@pytest.mark.parametrize(
    ("b", "c", "answer", "words"),
    [
        ([3.0, 3.2, 2.9], [2.0, 2.1, 1.8], "yes", "AP +3.0 against (b)"),
        ([3.0, 3.2, 2.9], [0.1, 0.0, 0.2], "no", "AP +0.1 against (c)"),
        ([3.0, 3.2, 2.9], [-2.0, -2.1, -1.8], "no", "a gain of 1 AP or more is excluded"),
        ([3.0, 3.2, 2.9], [3.0, -1.0, 2.0], "cannot tell", "needs about 22 seeds"),
        ([5.0], [5.0], "cannot tell", "needs at least 3 seeds"),
        ([3.0, -3.0, 0.001], [1.0, 1.1, 1.2], "cannot tell", "no affordable number of seeds"),
    ],
)
def test_verdicts_follow_from_the_intervals(
    b: list[float], c: list[float], answer: str, words: str
) -> None:
    found = [
        difference("b", b, np.mean(b) - 0.3, np.mean(b) + 0.3),
        difference("c", c, np.mean(c) - 0.3, np.mean(c) + 0.3),
    ]
    (verdict,) = verdicts(found, ARMS, test_images=100)
    assert verdict.answer == answer
    assert words in verdict.sentence


@pytest.mark.parametrize("gain", [1.0, -0.4])
def test_where_nothing_has_learned_nothing_is_told(gain: float) -> None:
    """However sure the difference: none of the three has an AP of 2."""
    by_seed = [gain, gain + 0.01, gain - 0.01]

    def verdict_at(*levels: float) -> tuple[str, str]:
        found = [
            difference(letter, by_seed, gain - 0.1, gain + 0.1, level)
            for letter, level in zip("bc", levels, strict=True)
        ]
        (verdict,) = verdicts(found, ARMS, test_images=100, matters=0.5)
        return verdict.answer, verdict.sentence

    answer, sentence = verdict_at(0.9, 0.8)
    assert answer == "cannot tell"
    highest = 0.9 + max(gain, 0)
    assert f"have learned enough yet (AP at most {highest:.1f}); train for longer" in sentence
    for levels in ((0.9, 2.1), (2.1, 0.9)):
        assert verdict_at(*levels)[0] == ("yes" if gain > 0 else "no")


def test_a_small_test_set_is_named_as_the_reason() -> None:
    found = [
        difference("b", [3.0, 3.2, 2.9], 1.0, 5.0),
        difference("c", [2.0, 2.1, 1.9], -2.0, 6.0),
    ]
    (verdict,) = verdicts(found, ARMS, test_images=100)
    assert verdict.answer == "cannot tell"
    assert "needs about 400 test images" in verdict.sentence  # half width 4 for a mean of 2
    assert images_needed(Interval(2.0, -2.0, 6.0), 100) == 400


def test_seeds_that_agree_on_a_loss_leave_it_to_the_test_images() -> None:
    found = [
        difference("b", [3.0, 3.2, 2.9], 2.7, 3.3),
        difference("c", [-2.0, -2.1, -1.9], -6.0, 2.0),
    ]
    (verdict,) = verdicts(found, ARMS, test_images=100)
    assert verdict.answer == "cannot tell"
    assert "the seeds agree, but the test set is small: needs about 400" in verdict.sentence


def test_a_gain_that_test_images_leave_open_is_no_no() -> None:
    found = [
        difference("b", [3.0, 3.2, 2.9], 2.7, 3.3),
        difference("c", [0.1, 0.0, 0.2], -3.0, 4.0),
    ]
    (verdict,) = verdicts(found, ARMS, test_images=100)
    assert verdict.answer == "cannot tell"
    assert "(c)" in verdict.sentence
    (verdict,) = verdicts(found, ARMS, test_images=100, matters=5.0)
    assert verdict.answer == "no"
    assert "a gain of 5 AP or more is excluded" in verdict.sentence


def test_percentiles_leave_a_fortieth_on_each_side() -> None:
    draws = np.random.default_rng(0).permutation(np.arange(1001.0))
    draws = np.append(draws, np.nan)  # a draw without any object
    assert percentile_interval(draws, 7.0) == pytest.approx((7.0, 25.0, 975.0))


def test_without_a_decisive_control_nothing_is_decided() -> None:
    (verdict,) = verdicts([difference("a", [9.0, 9.1], 8.0, 9.9)], ARMS, test_images=100)
    assert verdict.answer == "cannot tell"
    assert "(b)" in verdict.sentence
    assert "(c)" in verdict.sentence


def test_updates_to_reach() -> None:
    curve = [(100, 10.0), (200, 20.0), (400, 24.0)]
    assert updates_to_reach(curve, 12.5) == 125
    assert updates_to_reach(curve, 22.0) == 300
    assert updates_to_reach(curve, 5.0) == 100  # nothing is known before the first evaluation
    assert updates_to_reach(curve, 24.1) is None


def test_mean_curve_takes_steps_that_all_seeds_have() -> None:
    one, two = (run("scratch", s, np.full(IMAGES, 0.4)) for s in (0, 1))
    one = one._replace(curve=((50, 10.0), (75, 12.0), (100, 20.0)))
    two = two._replace(curve=((50, 20.0), (100, 40.0)))
    assert mean_curve([one, two]) == ((50, 15.0), (100, 30.0))


def test_runs_on_other_test_images_are_refused() -> None:
    runs = [run("method", 0, np.full(10, 0.5)), run("longer", 0, np.full(11, 0.5))]
    with pytest.raises(ValueError, match="same test images"):
        differences(runs, ARMS)
