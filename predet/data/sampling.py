"""Which images make up which batch, and which random numbers each image gets.

Everything is computed from (seed, step) or (seed, epoch, image): there is no state to save, and
the number of workers, or where a run was interrupted, changes nothing.

The data set is read as an endless stream: epoch after epoch, each in an order of its own. Step s
takes the positions [s * B, (s + 1) * B) of that stream, B being the total batch size; they are
dealt out to micro-batches and ranks in consecutive runs. So the images of a step do not depend on
the number of ranks, and B need not divide the number of images, nor be smaller. A mixture of
sources with weights is such a stream too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

# The first word of each seed keeps the streams apart: SeedSequence pads with zeros, so that
# (seed, epoch) alone and (seed, epoch, 0) would be the same.
_ORDER, _TRAINING_SAMPLE, _TEST_SAMPLE, _SOURCES = 1, 2, 3, 4

_LEAST_BLOCK = 1000  # images; weights are rounded to one part in this


class Stream(Protocol):
    """The endless stream of (epoch, index) of a training run."""

    seed: int

    def __getitem__(self, position: int) -> tuple[int, int]:
        """The epoch and the index of the image at `position`."""


class ImageStream:
    """All images once an epoch, each epoch in an order of its own."""

    def __init__(self, *, num_images: int, seed: int, source: int = 0):
        """Take the length of an epoch.

        Args:
            source: Streams of one seed and several sources have different orders.

        Raises:
            ValueError: There are no images, or the seed is negative.
        """
        if num_images < 1:
            raise ValueError(f"cannot draw batches from {num_images} images")
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        self.num_images, self.seed, self.source = num_images, seed, source
        self._orders: dict[int, np.ndarray] = {}

    def __getitem__(self, position: int) -> tuple[int, int]:
        """The epoch and the index of the image at `position`."""
        epoch, offset = divmod(position, self.num_images)
        return epoch, int(self._order(epoch)[offset])

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            if len(self._orders) > 1:  # two epochs meet in one batch
                self._orders.pop(min(self._orders))
            rng = np.random.default_rng([_ORDER, self.seed, epoch, self.source])
            self._orders[epoch] = rng.permutation(self.num_images)
        return self._orders[epoch]


class MixedStream:
    """Images of several sources in given shares.

    The stream is cut into blocks, of as many positions as there are images in all (but not less
    than a thousand). Each block holds the same number of images of a source, its share, in an order
    drawn anew; each source is gone through in epochs of its own, so that none of its images comes
    again before all others have come.
    """

    def __init__(self, *, groups: Sequence[np.ndarray], weights: Sequence[float], seed: int):
        """Take the sources.

        Args:
            groups: The indices of the images of each source.
            weights: Positive; only their ratios count.

        Raises:
            ValueError: A source is empty, or the seed is negative.
        """
        self.groups, self.seed = tuple(groups), seed
        self._streams = [
            ImageStream(num_images=len(group), seed=seed, source=number)
            for number, group in enumerate(groups, start=1)
        ]
        num_images = sum(map(len, groups))
        self.block = num_images * -(-_LEAST_BLOCK // num_images)
        self.shares = _whole_shares(np.asarray(weights, np.float64), self.block)
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __getitem__(self, position: int) -> tuple[int, int]:
        """The epoch of its source, and the index, of the image at `position`."""
        number, offset = divmod(position, self.block)
        sources, ranks = self._block(number)
        source = int(sources[offset])
        epoch, place = self._streams[source][number * int(self.shares[source]) + int(ranks[offset])]
        return epoch, int(self.groups[source][place])

    def _block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Source of each position of a block, and how many of that source came before it."""
        if number not in self._blocks:
            if len(self._blocks) > 1:
                self._blocks.pop(min(self._blocks))
            rng = np.random.default_rng([_SOURCES, self.seed, number])
            sources = np.repeat(np.arange(len(self.groups), dtype=np.int16), self.shares)
            sources = rng.permutation(sources)
            ranks = np.empty(self.block, np.int32)
            for source, share in enumerate(self.shares):
                ranks[sources == source] = np.arange(share)
            self._blocks[number] = sources, ranks
        return self._blocks[number]


def _whole_shares(weights: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers in the ratios of `weights` whose sum is `total`; none is 0."""
    exact = weights / weights.sum() * total
    shares = np.maximum(np.floor(exact).astype(np.int64), 1)
    while shares.sum() < total:
        shares[np.argmax(exact - shares)] += 1
    while shares.sum() > total:  # each source keeps one image
        shares[np.argmax(np.where(shares > 1, shares - exact, -np.inf))] -= 1
    return shares


def share_per_micro_batch(
    *, total_batch_size: int, accumulation_steps: int, world_size: int
) -> int:
    """Images of one rank in one micro-batch.

    Raises:
        ValueError: The total does not divide.
    """
    parts = accumulation_steps * world_size
    if min(total_batch_size, accumulation_steps) < 1:
        raise ValueError(
            "total_batch_size and accumulation_steps must be 1 or more, "
            f"got {total_batch_size} and {accumulation_steps}"
        )
    if total_batch_size % parts:
        raise ValueError(
            f"total_batch_size must be divisible by processes * accumulation_steps = {world_size} "
            f"* {accumulation_steps} = {parts}, got {total_batch_size}"
        )
    return total_batch_size // parts


def micro_batch_positions(
    step: int,
    micro_step: int,
    *,
    total_batch_size: int,
    accumulation_steps: int,
    rank: int,
    world_size: int,
) -> range:
    """Positions in the stream of one rank's micro-batch of one step."""
    share = share_per_micro_batch(
        total_batch_size=total_batch_size,
        accumulation_steps=accumulation_steps,
        world_size=world_size,
    )
    start = step * total_batch_size + (micro_step * world_size + rank) * share
    return range(start, start + share)


def replacement_positions(position: int, *, total_batch_size: int, num_images: int) -> range:
    """Where to look, in this order, for a substitute of an image that cannot be read.

    Begins at the same place of the next step, not at the next image: that one is most likely in
    this very batch, where it would appear twice with the same crops. Long enough to hold a whole
    epoch, that is, every image.
    """
    start = position + total_batch_size
    return range(start, start + 2 * num_images - 1)


def training_rng(seed: int, epoch: int, image_id: int) -> np.random.Generator:
    """The generator for the augmentation of one image in one epoch."""
    return np.random.default_rng([_TRAINING_SAMPLE, seed, epoch, image_id])


def test_rng(image_id: int) -> np.random.Generator:
    """The generator that a test-time mapper gets: always the same."""
    return np.random.default_rng([_TEST_SAMPLE, image_id])


def contiguous_share(num_images: int, *, rank: int, world_size: int) -> range:
    """The part of a rank at evaluation; lengths differ by at most one, the first are longer."""
    length, longer = divmod(num_images, world_size)
    start = rank * length + min(rank, longer)
    return range(start, start + length + (rank < longer))
