"""Matcher and criterion against plain re-computations; wrong variants are seen."""

from __future__ import annotations

import logging
import math

import pytest
import scipy.optimize
import torch
import torchvision

from predet.modeling.criterion import SetCriterion, base_name
from predet.modeling.matcher import HungarianMatcher
from predet.modeling.outputs import DetectorOutput, EncoderOutput
from predet.modeling.targets import Targets
from predet.ops.boxes import cxcywh_to_xyxy

WEIGHTS = {"loss_class": 2.0, "loss_bbox": 5.0, "loss_giou": 3.0}


def make_criterion(classification: str, **options) -> SetCriterion:
    focal = {name: value for name, value in options.items() if name.startswith("focal")}
    matcher = HungarianMatcher(classification=classification, class_cost=2.0, **focal)
    return SetCriterion(matcher=matcher, weights=WEIGHTS, **options)


def make_output(layers=3, images=3, queries=6, logits=5, seed=0, tokens=0) -> DetectorOutput:
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    encoder = None
    if tokens:
        encoder = EncoderOutput(
            (4 * rand(images, tokens, logits) - 2).requires_grad_(),
            (0.1 + 0.5 * rand(images, tokens, 4)).requires_grad_(),
        )
    return DetectorOutput(
        rand(layers, images, queries, 8),
        (4 * rand(layers, images, queries, logits) - 2).requires_grad_(),
        (0.1 + 0.5 * rand(layers, images, queries, 4)).requires_grad_(),
        encoder,
    )


def make_targets(counts=(3, 0, 2), classes=4, seed=1) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    return Targets(
        torch.randint(classes, (total,), generator=generator),
        0.1 + 0.5 * torch.rand(total, 4, generator=generator),
        counts,
    )


def plain_losses(
    logits, boxes, targets: Targets, classification: str, alpha: float = 0.25, gamma: float = 2
) -> tuple[float, float, float]:
    """One layer: match with scipy per image, then sum query by query in Python floats."""
    num_boxes = max(sum(targets.counts), 1)
    class_sum = weight_sum = l1_sum = giou_sum = 0.0
    start = 0
    for image, count in enumerate(targets.counts):
        wanted_classes = targets.classes[start : start + count].tolist()
        wanted_boxes = targets.boxes[start : start + count]
        start += count
        giou = torchvision.ops.generalized_box_iou(
            cxcywh_to_xyxy(boxes[image]), cxcywh_to_xyxy(wanted_boxes)
        )
        l1 = torch.cdist(boxes[image], wanted_boxes, p=1)
        if classification == "softmax":
            score = -logits[image].softmax(-1)[:, wanted_classes]
        else:
            p = logits[image].sigmoid()[:, wanted_classes]
            score = -alpha * (1 - p) ** gamma * p.log() + (1 - alpha) * p**gamma * (1 - p).log()
        cost = 2 * score + 5 * l1 - 2 * giou
        queries, found = scipy.optimize.linear_sum_assignment(cost.detach())
        class_of = dict(zip(queries.tolist(), [wanted_classes[t] for t in found], strict=True))
        l1_sum += sum(l1[q, t].item() for q, t in zip(queries, found, strict=True))
        giou_sum += sum(1 - giou[q, t].item() for q, t in zip(queries, found, strict=True))
        for query, row in enumerate(logits[image].tolist()):
            if classification == "softmax":
                wanted = class_of.get(query, len(row) - 1)
                weight = 0.1 if wanted == len(row) - 1 else 1.0
                class_sum += weight * (math.log(sum(map(math.exp, row))) - row[wanted])
                weight_sum += weight
            else:
                for column, x in enumerate(row):
                    p = 1 / (1 + math.exp(-x))
                    positive = class_of.get(query) == column
                    class_sum += (
                        -alpha * (1 - p) ** gamma * math.log(p)
                        if positive
                        else -(1 - alpha) * p**gamma * math.log(1 - p)
                    )
                weight_sum = num_boxes
    return class_sum / weight_sum, l1_sum / num_boxes, giou_sum / num_boxes


@pytest.mark.parametrize("classification", ["softmax", "focal"])
@pytest.mark.parametrize("counts", [(3, 0, 2), (0, 0, 0), (6, 1, 5), (8, 0, 1)], ids=str)
def test_losses_equal_a_plain_recomputation(classification, counts):
    output, targets = make_output(tokens=9), make_targets(counts)
    losses = make_criterion(classification)(output, targets)
    suffixes = {0: "_0", 1: "_1", 2: ""}
    expected = {}
    for layer, suffix in suffixes.items():
        values = plain_losses(output.logits[layer], output.boxes[layer], targets, classification)
        expected |= {n + suffix: v for n, v in zip(WEIGHTS, values, strict=True)}
    values = plain_losses(*output.encoder, targets.of_class_zero(), classification)
    expected |= {f"{n}_enc": v for n, v in zip(WEIGHTS, values, strict=True)}
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(
            WEIGHTS[base_name(name)] * value, rel=1e-4, abs=1e-6
        ), name


@pytest.mark.parametrize("classification", ["softmax", "focal"])
@pytest.mark.parametrize("counts", [(3, 0, 2), (8, 0, 1)], ids=str)
def test_a_step_of_one_part_has_the_losses_of_its_batch(classification, counts):
    """The counts of the step are then those of the batch: 8 targets have six queries."""
    criterion, output, targets = make_criterion(classification), make_output(), make_targets(counts)
    expected = criterion(output, targets)
    losses = criterion(output, targets._replace(step_counts=torch.tensor([counts])))
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, msg=name)


def test_alpha_and_gamma_of_the_focal_loss_and_cost():
    focal = {"focal_alpha": 0.6, "focal_gamma": 0.5}
    output, targets = make_output(layers=1), make_targets((3, 2, 5))
    losses = make_criterion("focal", **focal)(output, targets)
    values = plain_losses(output.logits[0], output.boxes[0], targets, "focal", *focal.values())
    for (name, weight), value in zip(WEIGHTS.items(), values, strict=True):
        assert losses[name].item() == pytest.approx(weight * value, rel=1e-4), name


def swapped_axes(output, targets):
    return output._replace(boxes=output.boxes[..., [1, 0, 3, 2]]), targets


def corners_for_centres(output, targets):
    return output._replace(boxes=cxcywh_to_xyxy(output.boxes)), targets


def layers_reversed(output, targets):
    return output._replace(logits=output.logits.flip(0), boxes=output.boxes.flip(0)), targets


def images_rolled(output, targets):
    counts = (targets.counts[-1], *targets.counts[:-1])
    return output, targets._replace(counts=counts)


def other_classes(output, targets):
    return output, targets._replace(classes=(targets.classes + 1) % 4)


@pytest.mark.parametrize(
    "spoil", [swapped_axes, corners_for_centres, layers_reversed, images_rolled, other_classes]
)
def test_wrong_inputs_would_be_seen(spoil):
    criterion = make_criterion("focal")
    right = criterion(make_output(), make_targets())
    wrong = criterion(*spoil(make_output(), make_targets()))
    assert max(abs(right[n] - wrong[n]).item() for n in ("loss_class", "loss_bbox")) > 0.01


@pytest.mark.parametrize("classification", ["softmax", "focal"])
def test_no_targets_give_zero_box_losses_that_lead_back_to_the_predictions(classification):
    output = make_output(tokens=5)
    losses = make_criterion(classification)(output, make_targets((0, 0, 0)))
    sum(losses.values()).backward()
    for name, value in losses.items():
        assert value.isfinite()
        assert (value > 0) == name.startswith("loss_class"), name
    for tensor in (output.boxes, output.encoder.boxes):
        assert tensor.grad is not None
        assert not tensor.grad.any()
    assert output.logits.grad.any()


def test_unused_encoder_columns_are_trained_to_zero():
    """As published: the loss of the encoder covers all columns, the target is column 0."""
    output = make_output(tokens=9)
    losses = make_criterion("focal")(output, make_targets())
    losses["loss_class_enc"].backward()
    gradient = output.encoder.logits.grad
    assert (gradient[..., 1:] > 0).all()
    assert (gradient[..., 0] < 0).sum() == 5  # one token for each target


def test_given_matches_are_used():
    criterion, output, targets = make_criterion("focal"), make_output(), make_targets()
    matches = criterion.match(output, targets)
    first = criterion(output, targets)
    second = criterion(output, targets, matches)
    assert all(torch.equal(first[name], second[name]) for name in first)
    rolled = matches._replace(query=(matches.query + 1) % 6)
    assert criterion(output, targets, rolled)["loss_bbox"] != first["loss_bbox"]


def test_matches_index_pairs():
    output, targets = make_output(), make_targets((3, 0, 8))
    matches = make_criterion("focal").match(output, targets)
    assert matches.image.tolist() == [0] * 3 + [2] * 6  # six queries for eight targets
    assert matches.query.shape == matches.target.shape == (3, 9)
    for layer in range(3):
        assert matches.target[layer, :3].tolist() == [0, 1, 2]
        assert set(matches.target[layer, 3:].tolist()) <= set(range(3, 11))
        assert sorted(matches.query[layer, 3:].tolist()) == list(range(6))


def test_matching_is_deterministic():
    criterion, output, targets = make_criterion("focal"), make_output(), make_targets()
    first, second = criterion.match(output, targets), criterion.match(output, targets)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_losses_are_fp32_under_autocast():
    output, targets = make_output(tokens=5), make_targets()
    criterion = make_criterion("focal")
    expected = criterion(output, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = criterion(output, targets)
    for name, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name])


class TestCostsThatAreNotFinite:
    def spoiled(self) -> DetectorOutput:
        output = make_output()
        boxes = output.boxes.detach().clone()
        boxes[1, 2, 3] = math.nan
        return output._replace(boxes=boxes)

    def test_said_once_with_layer_and_image_and_counted(self, caplog):
        criterion, targets = make_criterion("focal"), make_targets()
        with caplog.at_level(logging.WARNING):
            criterion(self.spoiled(), targets)
            criterion(self.spoiled(), targets)
        assert len(caplog.records) == 1
        assert "layer 1, image 2" in caplog.text
        # Query 3 of image 2 against its two targets, twice.
        assert criterion.matcher.num_bad_costs == 4

    def test_the_spoiled_query_is_not_matched(self):
        matches = make_criterion("focal").match(self.spoiled(), make_targets())
        assert 3 not in matches.query[1, matches.image == 2].tolist()

    def test_too_many_in_a_row_are_an_error(self):
        matcher = HungarianMatcher(classification="focal", class_cost=2.0, max_bad_steps=3)
        criterion = SetCriterion(matcher=matcher, weights=WEIGHTS)
        targets = make_targets()
        for _ in range(2):
            criterion(self.spoiled(), targets)
        criterion(make_output(), targets)  # a good step: the count starts again
        for _ in range(2):
            criterion(self.spoiled(), targets)
        with pytest.raises(ValueError, match=r"layer 1, image 2 .* 3 steps in a row"):
            criterion(self.spoiled(), targets)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="got 'sigmoid'"):
        HungarianMatcher(classification="sigmoid", class_cost=1.0)
    with pytest.raises(ValueError, match="at least one matching cost"):
        HungarianMatcher(classification="focal", class_cost=0, bbox_cost=0, giou_cost=0)
    matcher = HungarianMatcher(classification="focal", class_cost=1.0)
    with pytest.raises(ValueError, match="loss_ce"):
        SetCriterion(matcher=matcher, weights={"loss_ce": 1.0})


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("loss_bbox", "loss_bbox"),
        ("loss_bbox_4", "loss_bbox"),
        ("loss_giou_12", "loss_giou"),
        ("loss_class_enc", "loss_class"),
    ],
)
def test_base_names(name, base):
    assert base_name(name) == base
