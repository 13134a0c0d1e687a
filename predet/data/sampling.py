"""Which images make up which batch, and which random numbers each image gets.

Everything is computed from (seed, step) or (seed, epoch, image): there is no state to save, and
the number of workers, or where a run was interrupted, changes nothing.

The data set is read as an endless stream: epoch after epoch, each in an order of its own. Step s
takes the positions [s * B, (s + 1) * B) of that stream, B being the total batch size; they are
dealt out to micro-batches and ranks in consecutive runs. So the images of a step do not depend on
the number of ranks, and B need not divide the number of images, nor be smaller.
"""

from __future__ import annotations

import numpy as np

# The first word of each seed keeps the streams apart: SeedSequence pads with zeros, so that
# (seed, epoch) alone and (seed, epoch, 0) would be the same.
_ORDER, _TRAINING_SAMPLE, _TEST_SAMPLE = 1, 2, 3


class ImageStream:
    """The endless stream of (epoch, index) of a training run."""

    def __init__(self, *, num_images: int, seed: int):
        """Take the length of an epoch.

        Raises:
            ValueError: There are no images, or the seed is negative.
        """
        if num_images < 1:
            raise ValueError(f"cannot draw batches from {num_images} images")
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        self.num_images, self.seed = num_images, seed
        self._orders: dict[int, np.ndarray] = {}

    def __getitem__(self, position: int) -> tuple[int, int]:
        """The epoch and the index of the image at `position`."""
        epoch, offset = divmod(position, self.num_images)
        return epoch, int(self._order(epoch)[offset])

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            if len(self._orders) > 1:  # two epochs meet in one batch
                self._orders.pop(min(self._orders))
            rng = np.random.default_rng([_ORDER, self.seed, epoch])
            self._orders[epoch] = rng.permutation(self.num_images)
        return self._orders[epoch]


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
