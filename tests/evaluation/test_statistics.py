"""t intervals and the number of seeds, against hand-computed values and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from predet.evaluation.statistics import (
    MOST_SEEDS,
    power_of_paired_t,
    seeds_needed,
    t_interval,
)


def test_interval_of_a_textbook_sample() -> None:
    # 1, 2, 3: mean 2, standard deviation 1, t(2, 97.5%) = 4.30265 -> 2 -+ 4.30265 / sqrt(3)
    interval = t_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.low == pytest.approx(2 - 2.484138, abs=1e-5)
    assert interval.high == pytest.approx(2 + 2.484138, abs=1e-5)


@pytest.mark.parametrize("count", [2, 5, 30])
def test_interval_is_scipys(count: int) -> None:
    values = np.random.default_rng(count).normal(3, 2, count)
    interval = t_interval(values, confidence=0.9)
    test = stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    assert interval.low == pytest.approx(test.low)
    assert interval.high == pytest.approx(test.high)


def test_one_value_has_no_interval() -> None:
    interval = t_interval([4.0])
    assert interval.mean == 4.0
    assert math.isnan(interval.low)
    assert not interval.known


def test_values_must_be_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        t_interval([1.0, float("nan")])
    with pytest.raises(ValueError, match="finite"):
        t_interval([])


def test_power_is_that_of_simulated_seeds() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(1.2, 1.0, (20_000, 5))
    low = samples.mean(1) - stats.t.ppf(0.975, 4) * samples.std(1, ddof=1) / math.sqrt(5)
    assert power_of_paired_t(1.2, 5) == pytest.approx((low > 0).mean(), abs=0.01)


def test_seeds_needed_is_the_smallest_number_with_the_power() -> None:
    differences = [0.5, 1.5, -0.4, 1.2]
    effect = np.mean(differences) / np.std(differences, ddof=1)
    needed = seeds_needed(differences)
    assert needed is not None
    assert power_of_paired_t(effect, needed) >= 0.8 > power_of_paired_t(effect, needed - 1)
    # An effect of one standard deviation takes 10 pairs for 80% power (tables of the t test).
    unit = np.asarray([-1.0, 1.0]) / math.sqrt(2)
    assert seeds_needed((unit + 1.0).tolist()) == 10


def test_seeds_needed_says_when_it_cannot_tell() -> None:
    assert seeds_needed([1.0]) is None
    assert seeds_needed([1.0, -1.0]) is None  # no difference at all: no number is enough
    assert seeds_needed([10.0, -9.99]) is None  # more than MOST_SEEDS
    assert seeds_needed([2.0, 2.0]) == 2
    assert MOST_SEEDS == 1000
