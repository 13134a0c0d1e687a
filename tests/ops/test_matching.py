"""Matching costs against a plain loop, assignment against brute force and scipy on all pairs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import torch
import torchvision

from predet.ops.boxes import cxcywh_to_xyxy
from predet.ops.matching import (
    BAD_COST,
    linear_sum_assignment,
    matching_cost,
    replace_non_finite,
)

WEIGHTS = {"class_cost": 2.0, "bbox_cost": 5.0, "giou_cost": 2.0}


def problem(layers=2, images=3, queries=7, classes=4, counts=(3, 0, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    total = sum(counts)
    return {
        "logits": 4 * rand(layers, images, queries, classes) - 2,
        "boxes": 0.1 + 0.5 * rand(layers, images, queries, 4),
        "target_classes": torch.randint(classes, (total,), generator=generator),
        "target_boxes": 0.1 + 0.5 * rand(total, 4),
        "counts": counts,
    }


def plain_cost(p, classification, alpha=0.25, gamma=2.0):
    """One pair at a time, in Python floats and torchvision's GIoU."""
    layers, _, queries, _ = p["logits"].shape
    image_of = [image for image, count in enumerate(p["counts"]) for _ in range(count)]
    cost = np.zeros((layers, len(image_of), queries))
    for layer, (target, image), query in itertools.product(
        range(layers), enumerate(image_of), range(queries)
    ):
        logits = p["logits"][layer, image, query].tolist()
        wanted = int(p["target_classes"][target])
        if classification == "softmax":
            score = -math.exp(logits[wanted]) / sum(math.exp(x) for x in logits)
        else:
            q = 1 / (1 + math.exp(-logits[wanted]))
            score = alpha * (1 - q) ** gamma * -math.log(q)
            score -= (1 - alpha) * q**gamma * -math.log(1 - q)
        box, target_box = p["boxes"][layer, image, query], p["target_boxes"][target]
        l1 = sum(abs(a - b) for a, b in zip(box.tolist(), target_box.tolist(), strict=True))
        giou = torchvision.ops.generalized_box_iou(
            cxcywh_to_xyxy(box[None]), cxcywh_to_xyxy(target_box[None])
        ).item()
        cost[layer, target, query] = 2 * score + 5 * l1 - 2 * giou
    return cost


@pytest.mark.parametrize("classification", ["softmax", "focal"])
def test_cost_equals_a_plain_loop(classification):
    p = problem()
    cost = matching_cost(**p, classification=classification, **WEIGHTS)
    np.testing.assert_allclose(cost.numpy(), plain_cost(p, classification), atol=1e-5)


def test_alpha_and_gamma_of_the_focal_cost():
    p = problem()
    options = {"focal_alpha": 0.6, "focal_gamma": 0.5}
    cost = matching_cost(**p, classification="focal", **WEIGHTS, **options)
    np.testing.assert_allclose(cost.numpy(), plain_cost(p, "focal", *options.values()), atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"classification": "softmax"},
        {"class_cost": 0.0},
        {"giou_cost": -2.0},
        {"focal_alpha": 0.75},
    ],
    ids=str,
)
def test_another_cost_would_be_seen(wrong):
    p = problem()
    cost = matching_cost(**p, **{"classification": "focal", **WEIGHTS, **wrong})
    assert np.abs(cost.numpy() - plain_cost(p, "focal")).max() > 0.1


def test_swapped_axes_would_be_seen():
    p = problem()
    p["boxes"] = p["boxes"][..., [1, 0, 3, 2]]
    cost = matching_cost(**p, classification="focal", **WEIGHTS)
    assert np.abs(cost.numpy() - plain_cost(problem(), "focal")).max() > 0.1


def test_blocks_equal_the_matrix_of_all_pairs():
    """The diagonal blocks of the published all-pairs matrix, and its assignments."""
    p = problem(layers=1, images=4, queries=12, counts=(5, 1, 0, 7), seed=3)
    cost = matching_cost(**p, classification="softmax", **WEIGHTS)
    prob = p["logits"][0].flatten(0, 1).softmax(-1)
    boxes = p["boxes"][0].flatten(0, 1)
    all_pairs = (
        -2 * prob[:, p["target_classes"]]
        + 5 * torch.cdist(boxes, p["target_boxes"], p=1)
        - 2
        * torchvision.ops.generalized_box_iou(
            cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(p["target_boxes"])
        )
    ).view(4, 12, -1)
    found = linear_sum_assignment(cost.numpy(), p["counts"])
    start = 0
    for image, count in enumerate(p["counts"]):
        block = all_pairs[image, :, start : start + count]
        torch.testing.assert_close(cost[0, start : start + count], block.t())
        rows, columns = scipy.optimize.linear_sum_assignment(block)
        expected = np.empty(count, dtype=np.int64)
        expected[columns] = rows
        np.testing.assert_array_equal(found[0, start : start + count], expected)
        start += count


@pytest.mark.parametrize("counts", [(3, 0, 2), (0, 0, 0), (1, 4, 3)])
def test_assignment_is_optimal_by_brute_force(counts):
    queries, rng = 5, np.random.default_rng(1)
    cost = rng.normal(size=(2, sum(counts), queries))
    found = linear_sum_assignment(cost, counts)
    for layer in range(2):
        start = 0
        for count in counts:
            rows = np.arange(start, start + count)
            chosen = found[layer, rows]
            assert len(set(chosen.tolist())) == count
            best = min(
                cost[layer, rows, list(order)].sum()
                for order in itertools.permutations(range(queries), count)
            )
            assert cost[layer, rows, chosen].sum() == pytest.approx(best)
            start += count


def test_more_targets_than_queries_leaves_targets_over():
    cost = np.array([[[1.0, 9.0], [9.0, 1.0], [0.0, 9.0]]])
    np.testing.assert_array_equal(linear_sum_assignment(cost, [3]), [[-1, 1, 0]])


def test_each_image_is_matched_to_its_own_queries():
    p = problem(layers=1, images=2, queries=3, counts=(1, 1))
    p["boxes"][0, 0, 2] = p["target_boxes"][0]
    p["boxes"][0, 1, 1] = p["target_boxes"][1]
    cost = matching_cost(
        **p, classification="softmax", class_cost=0.0, bbox_cost=5.0, giou_cost=2.0
    )
    assert linear_sum_assignment(cost.numpy(), (1, 1)).tolist() == [[2, 1]]


def test_costs_stay_fp32_under_autocast():
    p = problem()
    plain = matching_cost(**p, classification="softmax", **WEIGHTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cost = matching_cost(**p, classification="softmax", **WEIGHTS)
    assert torch.equal(cost, plain)


def test_a_cost_that_is_not_finite_is_replaced_and_counted():
    cost = np.ones((2, 3, 4))
    cost[1, 2, :2] = np.nan
    cost[0, 0, 3] = np.inf
    clean, bad = replace_non_finite(cost)
    assert bad.tolist() == [[1, 0, 0], [0, 0, 2]]
    assert np.isfinite(clean).all()
    assert (clean == BAD_COST).sum() == 3
    # Such a query is taken last.
    assert linear_sum_assignment(clean, [3])[1, 2] in (2, 3)


def test_a_box_without_area_has_a_finite_cost():
    p = problem()
    p["boxes"][..., 2:] = 0
    p["target_boxes"][..., 2:] = 0
    assert matching_cost(**p, classification="focal", **WEIGHTS).isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.zeros(2, 3, 6, 4)}, r"got \(2, 3, 7, 4\) and \(2, 3, 6, 4\)"),
        ({"counts": (3, 2)}, "3 images, but 2 target counts"),
        ({"counts": (3, 1, 2)}, "counts say 6 targets"),
        ({"classification": "sigmoid"}, "got 'sigmoid'"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arguments = {**problem(), "classification": "focal", **WEIGHTS, **change}
    with pytest.raises(ValueError, match=message):
        matching_cost(**arguments)
