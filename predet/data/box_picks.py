"""Which of the ranked boxes of an image become targets: DETReg's three policies.

"DETReg: Unsupervised Pretraining with Region Priors" (arXiv 2106.04550, section 4) ranks the boxes
of Selective Search and takes some of them. A pick is a callable from the number of ranked boxes to
the positions that are taken, ascending: always k, or all where there are fewer.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Pick(Protocol):
    """Chooses among ranked boxes; `k` is how many it takes where there are enough."""

    k: int

    def __call__(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Positions (min(k, count),) int64 out of 0 (best) to count - 1, ascending."""


class TopK:
    """The k best."""

    def __init__(self, k: int = 30):
        self.k = _checked(k)

    def __call__(self, count: int, rng: np.random.Generator) -> np.ndarray:
        return np.arange(min(self.k, count))


class RandomK:
    """Any k, all equally likely."""

    def __init__(self, k: int = 30):
        self.k = _checked(k)

    def __call__(self, count: int, rng: np.random.Generator) -> np.ndarray:
        return np.sort(rng.permutation(count)[: self.k])


class ImportanceSampling:
    """k boxes, better ones more likely: box i of n with probability min(1, -c log(i / (n + 1))).

    The paper gives the shape of the probabilities and leaves the count to chance; here it is k in
    every image, by systematic sampling in random order, which keeps every box's probability
    (docs/decisions/0014-importance-sampling.md).
    """

    def __init__(self, k: int = 30):
        self.k = _checked(k)

    def __call__(self, count: int, rng: np.random.Generator) -> np.ndarray:
        if count <= self.k:
            return np.arange(count)
        order = rng.permutation(count)
        # Boxes lie end to end, each as long as its probability; a ruler with marks at distance 1,
        # put down at random, marks those that are taken.
        ends = np.cumsum(inclusion_probabilities(count, self.k)[order])
        ends[-1] = self.k
        marks = np.floor(ends + rng.random())
        return np.sort(order[np.diff(marks, prepend=0) > 0])


def inclusion_probabilities(count: int, k: int) -> np.ndarray:
    """min(1, -c log(i / (count + 1))) for i = 1 ... count, with the c for which their sum is k.

    Where `count` is k or less, all are 1. Dividing by count + 1 instead of the paper's count
    leaves the last box a chance.

    Returns:
        (count,) float64, descending.
    """
    if count <= k:
        return np.ones(count)
    weights = np.log((count + 1) / np.arange(1, count + 1))
    # With the m best boxes at 1, the others share what is left of k: the m for which the first of
    # the others does not exceed 1 is the right one.
    rest = np.cumsum(weights[::-1])[::-1]
    candidates = (k - np.arange(k)) / rest[:k]
    c = candidates[np.argmax(candidates * weights[:k] <= 1)]
    return np.minimum(1, c * weights)


def _checked(k: int) -> int:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"a pick takes a whole number of boxes, at least 1, got {k!r}")
    return k
