"""Statistics of few paired runs: t intervals over seeds, and how many seeds a question needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
POWER = 0.8
MOST_SEEDS = 1000


class Interval(NamedTuple):
    """An estimate with the ends of its interval; the ends are NaN where they cannot be told."""

    mean: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)


def t_interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> Interval:
    """Mean of independent values with its two-sided t interval.

    One value has a mean but no interval: its ends are NaN. The interval holds for values that are
    about normally distributed; few seeds make it wide, and rightly so.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"a t interval needs finite values, got {list(values)}")
    mean = float(array.mean())
    if len(array) == 1:
        return Interval(mean, float("nan"), float("nan"))
    error = float(array.std(ddof=1)) / math.sqrt(len(array))
    reach = float(stats.t.ppf(0.5 + confidence / 2, df=len(array) - 1)) * error
    return Interval(mean, mean - reach, mean + reach)


def power_of_paired_t(effect: float, seeds: int, *, confidence: float = CONFIDENCE) -> float:
    """Chance that the t interval of `seeds` differences excludes 0 on the side of the effect.

    Args:
        effect: true mean of the differences, divided by their standard deviation; not negative.
        seeds: number of differences, at least 2.
    """
    freedom = seeds - 1
    critical = float(stats.t.ppf(0.5 + confidence / 2, df=freedom))
    return float(stats.nct.sf(critical, freedom, effect * math.sqrt(seeds)))


def seeds_needed(
    differences: Sequence[float], *, power: float = POWER, confidence: float = CONFIDENCE
) -> int | None:
    """Seeds with which a difference as large as the one observed would be seen.

    The smallest number for which a t interval excludes 0 with probability `power`, if mean and
    spread of the observed differences were the true ones. Few seeds tell the spread only roughly,
    so this is an order of magnitude.

    Returns:
        The number, at most `MOST_SEEDS`; None where more would be needed, or where fewer than two
        differences tell no spread.
    """
    array = np.asarray(differences, dtype=np.float64)
    if len(array) < 2:
        return None
    mean, spread = abs(float(array.mean())), float(array.std(ddof=1))
    if spread == 0:
        return 2 if mean > 0 else None
    effect = mean / spread
    if power_of_paired_t(effect, MOST_SEEDS, confidence=confidence) < power:
        return None
    low, high = 1, MOST_SEEDS  # power grows with the number of seeds; 1 is too few
    while high - low > 1:
        middle = (low + high) // 2
        enough = power_of_paired_t(effect, middle, confidence=confidence) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high
