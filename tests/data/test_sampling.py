from collections import Counter

import numpy as np
import pytest

from predet.data.sampling import (
    ImageStream,
    contiguous_share,
    micro_batch_positions,
    replacement_positions,
    share_per_micro_batch,
    training_rng,
)
from predet.data.sampling import test_rng as make_test_rng


def test_each_epoch_is_a_permutation_of_its_own():
    stream = ImageStream(num_images=50, seed=3)
    drawn = [stream[position] for position in range(150)]
    assert [epoch for epoch, _ in drawn] == [0] * 50 + [1] * 50 + [2] * 50
    orders = [[index for epoch, index in drawn if epoch == wanted] for wanted in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert tuple(orders[0]) != tuple(range(50))


def test_stream_does_not_depend_on_the_way_it_is_read():
    forward = ImageStream(num_images=7, seed=1)
    expected = [forward[position] for position in range(70)]
    backward = ImageStream(num_images=7, seed=1)
    assert [backward[position] for position in reversed(range(70))] == expected[::-1]
    assert expected != [ImageStream(num_images=7, seed=2)[position] for position in range(70)]


@pytest.mark.parametrize(("world_size", "accumulation_steps"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_ranks_and_micro_batches_share_the_same_step(world_size, accumulation_steps):
    for step in (0, 1, 17):
        parts = [
            micro_batch_positions(
                step,
                micro_step,
                total_batch_size=8,
                accumulation_steps=accumulation_steps,
                rank=rank,
                world_size=world_size,
            )
            for micro_step in range(accumulation_steps)
            for rank in range(world_size)
        ]
        assert len({len(part) for part in parts}) == 1
        assert [p for part in parts for p in part] == list(range(8 * step, 8 * step + 8))


@pytest.mark.parametrize(("total", "world_size", "micro_steps"), [(6, 4, 1), (8, 2, 3), (2, 2, 2)])
def test_a_total_that_does_not_divide_is_refused(total, world_size, micro_steps):
    message = (
        rf"divisible by .* = {world_size} \* {micro_steps} = {world_size * micro_steps}, "
        rf"got {total}"
    )
    with pytest.raises(ValueError, match=message):
        share_per_micro_batch(
            total_batch_size=total, accumulation_steps=micro_steps, world_size=world_size
        )


@pytest.mark.parametrize(("total", "micro_steps"), [(0, 1), (4, 0)])
def test_nothing_is_refused(total, micro_steps):
    with pytest.raises(ValueError, match="must be 1 or more"):
        share_per_micro_batch(total_batch_size=total, accumulation_steps=micro_steps, world_size=1)


def test_an_empty_stream_and_a_negative_seed_are_refused():
    with pytest.raises(ValueError, match="from 0 images"):
        ImageStream(num_images=0, seed=0)
    with pytest.raises(ValueError, match="seed must be 0 or more, got -1"):
        ImageStream(num_images=1, seed=-1)


@pytest.mark.parametrize("num_images", [1, 2, 5, 16])
def test_replacements_reach_every_image_and_leave_the_step(num_images):
    stream = ImageStream(num_images=num_images, seed=0)
    for position in range(40):
        candidates = replacement_positions(position, total_batch_size=4, num_images=num_images)
        assert {stream[candidate][1] for candidate in candidates} == set(range(num_images))
        assert candidates[0] == position + 4


def test_generators_differ_in_each_word_of_their_seed():
    draws = [
        make(*words).integers(1 << 60)
        for make, words in [
            *((training_rng, (s, e, i)) for s in (0, 1) for e in (0, 1) for i in (0, 1, 2**40)),
            *((make_test_rng, (i,)) for i in (0, 1, 2)),
        ]
    ]
    assert max(Counter(draws).values()) == 1
    assert training_rng(1, 2, 3).random() == training_rng(1, 2, 3).random()


@pytest.mark.parametrize("num_images", [0, 1, 5, 8, 13])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_shares_at_evaluation_are_contiguous_and_whole(num_images, world_size):
    shares = [
        contiguous_share(num_images, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    assert [i for share in shares for i in share] == list(range(num_images))
    lengths = np.array([len(share) for share in shares])
    assert lengths.max() - lengths.min() <= 1
