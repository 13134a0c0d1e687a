"""Each target is matched within its own group, at the least cost there."""

from __future__ import annotations

import pytest
import torch

from predet.modeling.matcher import HungarianMatcher
from predet.modeling.outputs import DetectorOutput
from predet.modeling.targets import Targets
from predet.ops.matching import matching_cost
from predet.pretext.group_matching import match_in_groups, members_of_groups
from predet.pretext.patch_queries import group_of_query

COSTS = {"class_cost": 2.0, "bbox_cost": 5.0, "giou_cost": 2.0}


def make(classification: str, counts: tuple[int, ...], num_queries: int):
    generator = torch.Generator().manual_seed(0)
    layers, images = 3, len(counts)
    logits = torch.randn(layers, images, num_queries, 3, generator=generator)
    boxes = 0.1 + 0.4 * torch.rand(layers, images, num_queries, 4, generator=generator)
    total = sum(counts)
    targets = Targets(
        torch.randint(0, 2, (total,), generator=generator),
        0.1 + 0.4 * torch.rand(total, 4, generator=generator),
        counts,
    )
    matcher = HungarianMatcher(classification=classification, **COSTS)
    return matcher, DetectorOutput(logits, logits, boxes), targets


@pytest.mark.parametrize("classification", ["softmax", "focal"])
@pytest.mark.parametrize(
    ("num_queries", "num_groups", "counts"),
    [(12, 3, (3, 3)), (11, 4, (4, 2, 0, 3)), (7, 7, (7, 1)), (10, 1, (1, 0)), (8, 3, (0, 0))],
)
def test_every_target_has_the_cheapest_query_of_its_group(
    classification, num_queries, num_groups, counts
):
    matcher, output, targets = make(classification, counts, num_queries)
    matches = match_in_groups(matcher, output, targets, num_groups)
    cost = matching_cost(
        output.logits,
        output.boxes,
        targets.classes,
        targets.boxes,
        counts,
        classification=classification,
        **COSTS,
    )  # (L, targets, N)
    group = group_of_query(num_queries, num_groups).tolist()
    row = 0
    for image, count in enumerate(counts):
        for patch in range(count):
            assert matches.image[row] == image
            for layer in range(3):
                own = [q for q in range(num_queries) if group[q] == patch]
                best = min(own, key=lambda q: cost[layer, row, q].item())
                assert matches.query[layer, row] == best
                assert matches.target[layer, row] == row
            row += 1
    assert matches.query.shape == (3, row)


def test_matching_over_all_queries_leaves_the_groups():
    matcher, output, targets = make("softmax", (3, 3), 12)
    free = matcher(output.logits, output.boxes, targets)
    own = group_of_query(12, 3)[free.query] == torch.tensor([0, 1, 2] * 2)
    assert not own.all()


def test_members_of_uneven_groups_repeat_their_last():
    assert members_of_groups(7, 3).tolist() == [[0, 1, 2], [3, 4, 4], [5, 6, 6]]


def test_more_targets_than_groups_are_named():
    matcher, output, targets = make("focal", (3,), 12)
    with pytest.raises(ValueError, match=r"3 targets of an image cannot be matched in 2 groups"):
        match_in_groups(matcher, output, targets, 2)
