"""One-to-many matching: as if every image's targets had been repeated, without repeating them."""

from __future__ import annotations

import math

import pytest
import scipy.optimize
import torch

from predet.modeling.criterion import average_num_boxes
from predet.modeling.matcher import HungarianMatcher
from predet.modeling.targets import Targets
from predet.ops.matching import matching_cost

COSTS = {"class_cost": 2.0, "bbox_cost": 5.0, "giou_cost": 2.0}
LAYERS, IMAGES, CLASSES = 3, 3, 4


def make(counts=(3, 0, 2), queries=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.rand(LAYERS, IMAGES, queries, CLASSES, generator=generator) - 2
    boxes = 0.1 + 0.5 * torch.rand(LAYERS, IMAGES, queries, 4, generator=generator)
    total = sum(counts)
    classes = torch.randint(CLASSES, (total,), generator=generator)
    target_boxes = 0.1 + 0.5 * torch.rand(total, 4, generator=generator)
    return logits, boxes, Targets(classes, target_boxes, counts)


def make_matcher(**options) -> HungarianMatcher:
    return HungarianMatcher(classification="focal", **COSTS, **options)


def total_cost(cost: torch.Tensor, targets, queries) -> float:
    return sum(float(cost[t, q]) for t, q in zip(targets, queries, strict=True))


@pytest.mark.parametrize("copies", [1, 2, 6])
@pytest.mark.parametrize("queries", [20, 7], ids=["enough", "too_few"])
def test_equals_scipy_on_repeated_costs(copies, queries):
    logits, boxes, targets = make(queries=queries)
    cost = matching_cost(
        logits, boxes, targets.classes, targets.boxes, targets.counts, classification="focal",
        **COSTS,
    )  # fmt: skip
    matches = make_matcher()(logits, boxes, targets, copies)
    start = 0
    for image, count in enumerate(targets.counts):
        rows = torch.arange(start, start + count).repeat(copies)
        start += count
        of_image = matches.image == image
        assert int(of_image.sum()) == min(copies * count, queries)
        for layer in range(LAYERS):
            found, query = matches.target[layer, of_image], matches.query[layer, of_image]
            assert len(set(query.tolist())) == len(query)
            if len(rows) <= queries:
                assert found.tolist() == rows.tolist()  # copy by copy
            else:
                assert set(found.tolist()) <= set(rows.tolist())
                assert max(found.tolist().count(row) for row in found.tolist()) <= copies
            chosen, best = scipy.optimize.linear_sum_assignment(cost[layer][rows])
            expected = total_cost(cost[layer][rows], chosen, best)
            assert total_cost(cost[layer], found, query) == pytest.approx(expected, rel=1e-5)


def test_each_target_gets_as_many_queries_as_there_are_copies():
    logits, boxes, targets = make()
    matches = make_matcher()(logits, boxes, targets, 6)
    for layer in range(LAYERS):
        assert matches.target[layer].bincount().tolist() == [6] * 5
    once = make_matcher()(logits, boxes, targets)
    assert once.target[0].tolist() == [0, 1, 2, 3, 4]


def test_no_targets():
    logits, boxes, targets = make(counts=(0, 0, 0))
    matches = make_matcher()(logits, boxes, targets, 6)
    assert matches.query.shape == matches.target.shape == (LAYERS, 0)
    assert matches.image.tolist() == []


def test_calls_with_and_without_copies_are_judged_apart():
    """A good one-to-many call does not excuse a one-to-one call that is bad step after step."""
    matcher = make_matcher(max_bad_steps=3)
    logits, boxes, targets = make()
    bad = boxes.clone()
    bad[1, 2, 3] = math.nan
    for _ in range(2):
        matcher(logits, bad, targets)
        matcher(logits, boxes, targets, 6)
    # Query 3 of image 2 against its two targets, in two steps.
    assert matcher.num_bad_costs == 4
    with pytest.raises(ValueError, match="3 steps in a row"):
        matcher(logits, bad, targets)


def test_the_normaliser_counts_copies_before_it_is_kept_above_one():
    device = torch.device("cpu")
    assert average_num_boxes(make()[2], device, copies=6) == 30
    assert average_num_boxes(make(counts=(0, 0, 0))[2], device, copies=6) == 1
