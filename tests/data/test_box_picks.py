"""Picks: counts, ranks, and the frequencies of importance sampling against a solver of its own."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from scipy.optimize import brentq

from predet.data.box_picks import ImportanceSampling, RandomK, TopK, inclusion_probabilities

PICKS = [TopK, RandomK, ImportanceSampling]
CASES = [(31, 30), (100, 30), (268, 30), (5, 1), (2, 1), (40, 39), (2000, 100)]


def by_root(count: int, k: int) -> np.ndarray:
    """min(1, -c log(i / (n + 1))) with c found by a general root finder."""
    weights = -np.log(np.arange(1, count + 1) / (count + 1))
    c = brentq(lambda c: np.minimum(1, c * weights).sum() - k, 0, 1e6, xtol=1e-13, rtol=1e-13)
    return np.minimum(1, c * weights)


@pytest.mark.parametrize(("count", "k"), CASES)
def test_probabilities_are_those_of_the_formula(count, k):
    found = inclusion_probabilities(count, k)
    assert found.sum() == pytest.approx(k, abs=1e-9)
    np.testing.assert_allclose(found, by_root(count, k), atol=1e-9)
    assert (np.diff(found) <= 0).all()
    assert 0 < found[-1] <= found[0] <= 1


def test_few_boxes_are_all_certain():
    assert inclusion_probabilities(7, 7).tolist() == [1] * 7
    assert inclusion_probabilities(3, 7).tolist() == [1] * 3
    assert inclusion_probabilities(0, 7).tolist() == []


def frequencies(pick, count: int, draws: int) -> np.ndarray:
    taken = np.zeros(count)
    for seed in range(draws):
        taken[pick(count, np.random.default_rng(seed))] += 1
    return taken / draws


@pytest.mark.parametrize(("count", "k"), [(60, 20), (12, 10), (100, 3)])
def test_importance_sampling_takes_each_box_as_often_as_it_should(count, k):
    draws = 4000
    expected = by_root(count, k)
    spread = np.sqrt(expected * (1 - expected) / draws)

    def fits(wanted: np.ndarray) -> bool:
        return bool((abs(found - wanted) <= 4.5 * spread + 1e-12).all())

    found = frequencies(ImportanceSampling(k), count, draws)
    assert fits(expected)
    weights = -np.log(np.arange(1, count + 1) / (count + 1))
    for factor in (0.8, 1.25):  # of a wrong c
        c = expected[-1] / weights[-1] * factor
        assert not fits(np.minimum(1, c * weights))
    assert not fits(np.full(count, k / count))


def test_importance_sampling_lets_neighbours_in_rank_come_together():
    """Plain systematic sampling down the ranks would take every n-th box only."""
    together = sum(
        {30, 31} <= set(ImportanceSampling(10)(60, np.random.default_rng(seed)).tolist())
        for seed in range(3000)
    )
    p = by_root(60, 10)
    assert together / 3000 == pytest.approx(p[30] * p[31], abs=0.012)


def test_random_k_takes_each_box_equally_often():
    found = frequencies(RandomK(20), 60, 4000)
    assert abs(found - 1 / 3).max() < 4.5 * np.sqrt(2 / 9 / 4000)


@pytest.mark.parametrize("make", PICKS)
@pytest.mark.parametrize(("count", "k"), [*CASES, (0, 3), (1, 3), (3, 3)])
def test_every_image_gives_k_boxes_or_all_it_has(make, count, k):
    pick = pickle.loads(pickle.dumps(make(k)))
    assert pick.k == k
    for seed in range(50):
        taken = pick(count, np.random.default_rng(seed))
        assert len(taken) == min(k, count)
        assert (np.diff(taken) > 0).all()
        assert ((taken >= 0) & (taken < count)).all()
        np.testing.assert_array_equal(taken, pick(count, np.random.default_rng(seed)))


def test_top_k_takes_the_first():
    assert TopK(3)(10, np.random.default_rng(0)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("make", PICKS)
@pytest.mark.parametrize("k", [0, -1, 2.0, True, None])
def test_bad_counts_are_named(make, k):
    with pytest.raises(ValueError, match=f"at least 1, got {k}"):
        make(k)
