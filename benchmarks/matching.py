#!/usr/bin/env python
"""Matching against the DETR repository's way of doing it, against the best of PyTorch, and scipy.

    benchmarks/matching.py [FIGURE ...] --output benchmarks/results

Costs and assignment of all decoder layers and images of a step, on one thread: `detr` (300 queries,
softmax, COCO-like numbers of objects), `h_detr` (1500 queries, focal, each target wanted six
times), `dense_self_training` (the same with 100 pseudo-boxes an image), `two_stage_encoder` (all
22323 tokens of an 800 x 1333 image, one class). `ratio` is against the formulation of the DETR
repository: layer after layer, every query of the batch against every target of the batch, then
scipy image by image. `ratio_best_pytorch` is against the fastest that we could write in PyTorch:
only the blocks of one image, class scores gathered before anything is computed from them.

`solver_300x30` and `solver_1500x180` assign 96 matrices of given costs, on two threads, against a
loop over scipy. `training_step_gain` says how much longer a whole training step of DETR (ResNet-50,
two images of 480 x 640, COCO-like targets) takes with the DETR repository's matching: the step and
both ways of matching are timed, since the difference is far below what steps vary by. The gain is
small, for such a step is nearly all network; it grows with queries, targets and images.

Predictions are those of a model that has learned something: three queries compete for each target.
All sides get the same tensors and take turns in one process.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.optimize
import torch
from figures import Figure, compare, main, milliseconds, set_threads, spread
from torch import Tensor

from predet.d2 import Boxes, Instances
from predet.layers.transformer import Transformer
from predet.modeling.backbone import ResNet
from predet.modeling.criterion import SetCriterion
from predet.modeling.matcher import HungarianMatcher
from predet.ops.boxes import cxcywh_to_xyxy, generalized_box_iou
from predet.ops.matching import linear_sum_assignment, match, matching_cost
from predet.projects.detr import DETR

LAYERS, IMAGES = 6, 16
PEER = "the DETR repository's formulation (all pairs of the batch) with scipy"
BEST = "PyTorch on the blocks of each image, classes gathered first, with scipy"


class Problem(NamedTuple):
    """One step's predictions and targets; legend as in predet.ops.matching."""

    logits: Tensor  # (L, B, Q, K)
    boxes: Tensor  # (L, B, Q, 4)
    target_classes: Tensor  # (M,)
    target_boxes: Tensor  # (M, 4)
    counts: list[int]
    softmax: bool
    copies: int

    @property
    def weights(self) -> dict[str, float]:
        return {"class_cost": 1.0 if self.softmax else 2.0, "bbox_cost": 5.0, "giou_cost": 2.0}


def coco_counts(images: int) -> list[int]:
    """About as many objects an image as in COCO: 7 on average, few images with many."""
    rng = np.random.default_rng(2)
    return np.clip(np.rint(rng.lognormal(1.7, 0.9, images)), 1, 60).astype(int).tolist()


def make_problem(
    counts: list[int],
    queries: int,
    classes: int,
    *,
    softmax: bool,
    copies: int = 1,
    layers: int = LAYERS,
) -> Problem:
    torch.manual_seed(0)
    total = sum(counts)
    target_boxes = torch.cat([torch.rand(total, 2), 0.05 + 0.4 * torch.rand(total, 2)], dim=-1)
    target_classes = torch.randint(classes, (total,))
    shape = (layers, len(counts), queries)
    logits = torch.randn(*shape, classes) - (0.0 if softmax else 4.0)
    boxes = torch.cat([torch.rand(*shape, 2), 0.05 + 0.4 * torch.rand(*shape, 2)], dim=-1)
    start = 0
    for image, count in enumerate(counts):
        chosen = torch.randperm(queries)[: 3 * count * copies]
        target = start + torch.arange(len(chosen)) % count
        near = target_boxes[target] + 0.02 * torch.randn(layers, len(chosen), 4)
        boxes[:, image, chosen] = near.clamp(0.01, 1)
        logits[:, image, chosen, target_classes[target]] += 4
        start += count
    return Problem(logits, boxes, target_classes, target_boxes, counts, softmax, copies)


def by_predet(p: Problem) -> Tensor:
    classification = "softmax" if p.softmax else "focal"
    *tensors, _, copies = p
    found = match(*tensors, classification=classification, copies=copies, **p.weights)
    return found.query_of_target


def class_cost(scores: Tensor, softmax: bool) -> Tensor:
    """Of scores between 0 and 1."""
    if softmax:
        return -scores
    positive = 0.25 * (1 - scores) ** 2 * -(scores + 1e-8).log()
    return positive - 0.75 * scores**2 * -(1 - scores + 1e-8).log()


def repeated(p: Problem) -> tuple[Tensor, Tensor, list[int]]:
    """Classes and boxes of the targets, every image's repeated `copies` times, and their counts."""
    rows = [
        row for rows in torch.arange(sum(p.counts)).split(p.counts) for row in (rows,) * p.copies
    ]
    index = torch.cat(rows)
    return p.target_classes[index], p.target_boxes[index], [p.copies * n for n in p.counts]


def by_all_pairs(p: Problem) -> list[Tensor]:
    """Each layer for itself, all queries of the batch against all targets of the batch."""
    classes, targets, counts = repeated(p)
    found = []
    for logits, boxes in zip(p.logits, p.boxes, strict=True):
        flat = logits.flatten(0, 1)
        scores = flat.softmax(-1) if p.softmax else flat.sigmoid()
        if p.softmax:
            by_class = class_cost(scores[:, classes], True)
        else:
            by_class = class_cost(scores, False)[:, classes]
        l1 = torch.cdist(boxes.flatten(0, 1), targets, p=1)
        giou = all_giou(boxes.flatten(0, 1), targets)
        weights = p.weights
        cost = weights["class_cost"] * by_class + weights["bbox_cost"] * l1
        cost = (cost - weights["giou_cost"] * giou).view(*boxes.shape[:2], -1).cpu()
        found.append(assigned([block[i] for i, block in enumerate(cost.split(counts, -1))]))
    return found


def by_blocks(p: Problem) -> list[Tensor]:
    """All layers at once, each image against its own targets, which are not repeated."""
    found = []
    targets = zip(p.target_classes.split(p.counts), p.target_boxes.split(p.counts), strict=True)
    for image, (classes, boxes) in enumerate(targets):
        own = p.boxes[:, image].flatten(0, 1)
        logits = p.logits[:, image].flatten(0, 1)
        scores = logits[:, classes]
        if p.softmax:
            scores = (scores - logits.logsumexp(-1, keepdim=True)).exp()
        else:
            scores = scores.sigmoid()
        cost = p.weights["class_cost"] * class_cost(scores, p.softmax)
        cost += p.weights["bbox_cost"] * torch.cdist(own, boxes, p=1)
        cost -= p.weights["giou_cost"] * giou_by_planes(own, boxes)
        of_layers = cost.view(len(p.logits), -1, len(boxes))
        found.append(assigned([layer.repeat(1, p.copies) for layer in of_layers]))
    return found


def all_giou(queries: Tensor, targets: Tensor) -> Tensor:
    """(N, 4), (M, 4) cxcywh -> (N, M)"""
    return generalized_box_iou(cxcywh_to_xyxy(queries)[:, None], cxcywh_to_xyxy(targets)[None])


def giou_by_planes(queries: Tensor, targets: Tensor) -> Tensor:
    """The same, one coordinate at a time, which leaves no (N, M, 2) in memory."""
    x1, y1, x2, y2 = cxcywh_to_xyxy(queries).T[:, :, None]
    u1, v1, u2, v2 = cxcywh_to_xyxy(targets).T[:, None, :]
    shared = (x2.minimum(u2) - x1.maximum(u1)).clamp_(min=0)
    shared *= (y2.minimum(v2) - y1.maximum(v1)).clamp_(min=0)
    union = ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1)) - shared
    enclosing = (x2.maximum(u2) - x1.minimum(u1)) * (y2.maximum(v2) - y1.minimum(v1))
    return shared / union - (enclosing - union) / enclosing


def assigned(blocks: list[Tensor]) -> Tensor:
    """Of blocks (queries, targets) -> the queries of all, target by target."""
    queries = []
    for block in blocks:
        rows, columns = scipy.optimize.linear_sum_assignment(block.numpy())
        queries.append(torch.as_tensor(rows[np.argsort(columns)]))
    return torch.cat(queries)


def check_equal(p: Problem) -> float:
    """Share of targets that all three sides give to the same query: there are no ties here."""
    ours = by_predet(p)
    images = list(ours.split([p.copies * n for n in p.counts], dim=1))
    best = [x.view(len(ours), -1) for x in by_blocks(p)]
    same = sum(
        int((ours_one.sort(-1).values == best_one.sort(-1).values).sum())
        for ours_one, best_one in zip(images, best, strict=True)
    )
    return same / ours.numel()


def step_figure(p: Problem) -> Figure:
    set_threads(1)
    best = compare(lambda: by_predet(p), lambda: by_blocks(p), peer=BEST, ours_each=5)
    figure = compare(
        lambda: by_predet(p), lambda: by_all_pairs(p), peer=PEER, repeats=3, ours_each=10
    )
    return {
        **figure,
        "ratio_best_pytorch": best["ratio"],
        "best_pytorch": BEST,
        "best_pytorch_ms": best["peer_ms"],
        "same_queries": round(check_equal(p), 4),
        "layers": len(p.logits),
        "images": len(p.counts),
        "queries": p.logits.shape[2],
        "targets": sum(p.counts),
        "copies": p.copies,
    }


def detr(_: argparse.Namespace) -> Figure:
    return step_figure(make_problem(coco_counts(IMAGES), 300, 92, softmax=True))


def h_detr(_: argparse.Namespace) -> Figure:
    return step_figure(make_problem(coco_counts(IMAGES), 1500, 91, softmax=False, copies=6))


def dense_self_training(_: argparse.Namespace) -> Figure:
    # Four images: with sixteen, the matrices of all pairs need more than ten GB.
    return step_figure(make_problem([100] * 4, 1500, 91, softmax=False, copies=6))


def two_stage_encoder(_: argparse.Namespace) -> Figure:
    problem = make_problem(coco_counts(4), 22_323, 91, softmax=False, layers=1)
    return step_figure(problem._replace(target_classes=torch.zeros_like(problem.target_classes)))


def solver(queries: int, targets: int) -> Callable[[argparse.Namespace], Figure]:
    def figure(_: argparse.Namespace) -> Figure:
        p = make_problem([targets] * IMAGES, queries, 91, softmax=False)
        *tensors, _softmax, _copies = p
        cost = matching_cost(*tensors, classification="focal", **p.weights)
        blocks = [block for layer in cost.numpy() for block in np.split(layer, IMAGES)]
        set_threads(2)
        figure = compare(
            lambda: linear_sum_assignment(cost, p.counts),
            lambda: [scipy.optimize.linear_sum_assignment(block) for block in blocks],
            peer="scipy.optimize.linear_sum_assignment, matrix by matrix",
            ours_each=3,
        )
        set_threads(1)
        ours = [milliseconds(lambda: linear_sum_assignment(cost, p.counts)) for _ in range(9)]
        one_thread = figure["peer_ms"]["median"] / statistics.median(ours)
        return {
            **figure,
            "ratio_one_thread": round(one_thread, 3),
            "ours_one_thread_ms": spread(ours),
            "matrices": len(blocks),
        }

    return figure


def training_step_gain(_: argparse.Namespace) -> Figure:
    set_threads(1)
    torch.manual_seed(0)
    model = DETR(
        backbone=ResNet(depth=50, weights=None, norm="gn", freeze_at=0),
        transformer=Transformer(
            hidden_dim=256, num_heads=8, num_encoder_layers=6, num_decoder_layers=6,
            ffn_dim=2048, dropout=0.1,
        ),
        criterion=SetCriterion(
            matcher=HungarianMatcher(classification="softmax", class_cost=1.0),
            weights={"loss_class": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0},
        ),
        num_classes=80,
        num_queries=100,
    )  # fmt: skip
    counts = [7, 8]
    batch = [sample(count) for count in counts]

    def step() -> None:
        model.zero_grad()
        sum(model(batch).values()).backward()

    step()
    step_ms = [milliseconds(step) for _ in range(5)]
    p = make_problem(counts, 100, 81, softmax=True)
    matching = compare(lambda: by_predet(p), lambda: by_all_pairs(p), peer=PEER, ours_each=5)
    whole = statistics.median(step_ms)
    ours, theirs = (matching[side]["median"] for side in ("ours_ms", "peer_ms"))
    return {
        "ratio": round((whole - ours + theirs) / whole, 4),
        "peer": f"the same step with {PEER}",
        "step_ms": spread(step_ms),
        "matching_ms": matching["ours_ms"],
        "peer_matching_ms": matching["peer_ms"],
        "threads": 1,
    }


def sample(count: int) -> dict:
    corner = 200 * torch.rand(count, 2)
    instances = Instances((480, 640))
    instances.gt_boxes = Boxes(torch.cat([corner, corner + 20 + 200 * torch.rand(count, 2)], -1))
    instances.gt_classes = torch.randint(80, (count,))
    image = torch.randint(256, (3, 480, 640), dtype=torch.uint8)
    return {"image": image, "height": 480, "width": 640, "instances": instances}


if __name__ == "__main__":
    main(
        __doc__,
        {
            "detr": detr,
            "h_detr": h_detr,
            "dense_self_training": dense_self_training,
            "two_stage_encoder": two_stage_encoder,
            "solver_300x30": solver(300, 30),
            "solver_1500x180": solver(1500, 180),
            "training_step_gain": training_step_gain,
        },
    )
