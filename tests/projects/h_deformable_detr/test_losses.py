"""The one-to-many loss by hand, and where look forward twice lets gradients through."""

from __future__ import annotations

import pytest
import scipy.optimize
import torch
import torchvision

from predet.modeling import criterion as criterion_module
from predet.modeling.criterion import SetCriterion
from predet.modeling.matcher import HungarianMatcher
from predet.modeling.outputs import DetectorOutput
from predet.modeling.targets import Targets
from predet.ops.boxes import cxcywh_to_xyxy
from predet.projects.h_deformable_detr import HybridCriterion, MixedQueries

WEIGHTS = {"loss_class": 2.0, "loss_bbox": 5.0, "loss_giou": 3.0}
CLASSES, LAYERS, ONE, MANY = 4, 3, 6, 30


def make_criterion(**options) -> HybridCriterion:
    matcher = HungarianMatcher(classification="focal", class_cost=2.0)
    return HybridCriterion(matcher=matcher, weights=WEIGHTS, **options)


def make_output(seed: int = 0) -> DetectorOutput:
    generator = torch.Generator().manual_seed(seed)

    def group(queries: int) -> DetectorOutput:
        shape = LAYERS, 3, queries
        return DetectorOutput(
            torch.rand(*shape, 8, generator=generator),
            (4 * torch.rand(*shape, CLASSES, generator=generator) - 2).requires_grad_(),
            (0.1 + 0.5 * torch.rand(*shape, 4, generator=generator)).requires_grad_(),
        )

    return group(ONE)._replace(one_to_many=group(MANY))


def make_targets(counts=(3, 0, 4)) -> Targets:
    generator = torch.Generator().manual_seed(1)
    total = sum(counts)
    return Targets(
        torch.randint(CLASSES, (total,), generator=generator),
        0.1 + 0.5 * torch.rand(total, 4, generator=generator),
        counts,
    )


def by_hand(logits, boxes, targets: Targets, copies: int) -> tuple[float, float, float]:
    """One layer: targets really repeated, scipy on the repeated costs, sums pair by pair."""
    class_sum = l1_sum = giou_sum = 0.0
    start = 0
    for image, count in enumerate(targets.counts):
        rows = list(range(start, start + count)) * copies
        start += count
        wanted, classes = targets.boxes[rows], targets.classes[rows]
        p = logits[image].sigmoid()
        positive, negative = -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log()
        l1 = (boxes[image][:, None] - wanted[None]).abs().sum(dim=-1)
        giou = torchvision.ops.generalized_box_iou(
            cxcywh_to_xyxy(boxes[image]), cxcywh_to_xyxy(wanted)
        )
        cost = 2 * (positive - negative)[:, classes] + 5 * l1 - 2 * giou
        queries, found = scipy.optimize.linear_sum_assignment(cost.detach())
        assert len(found) == len(rows)
        is_class = torch.zeros_like(p, dtype=torch.bool)
        is_class[queries, classes[found]] = True
        class_sum += torch.where(is_class, positive, negative).sum().item()
        l1_sum += l1[queries, found].sum().item()
        giou_sum += (1 - giou[queries, found]).sum().item()
    num_boxes = max(copies * sum(targets.counts), 1)
    return class_sum / num_boxes, l1_sum / num_boxes, giou_sum / num_boxes


@pytest.mark.parametrize("counts", [(3, 0, 4), (5, 5, 5), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("copies", [6, 2])
def test_the_one_to_many_losses_by_hand(counts, copies):
    output, targets = make_output(), make_targets(counts)
    losses = make_criterion(copies=copies, one_to_many_weight=0.5)(output, targets)
    expected = {}
    for layer, suffix in enumerate(("_0", "_1", "")):
        for group, times, weight, end in (
            (output, 1, 1.0, ""),
            (output.one_to_many, copies, 0.5, "_one_to_many"),
        ):
            values = by_hand(group.logits[layer], group.boxes[layer], targets, times)
            for (name, own), value in zip(WEIGHTS.items(), values, strict=True):
                expected[name + suffix + end] = weight * own * value
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_the_published_numbers_are_the_default():
    criterion = make_criterion()
    assert (criterion.copies, criterion.one_to_many_weight) == (6, 1.0)
    assert (MixedQueries().num_queries, MixedQueries().num_one_to_many) == (300, 1500)


def test_the_normaliser_is_that_of_the_repeated_targets_of_all_processes(monkeypatch):
    """Two targets on eight processes are a quarter each, kept at 1; their copies are 1.5."""
    output, targets = make_output(), make_targets((1, 0, 0))
    alone = make_criterion()(output, targets)
    monkeypatch.setattr(criterion_module.torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(criterion_module.torch.distributed, "get_world_size", lambda: 8)
    monkeypatch.setattr(
        criterion_module.torch.distributed, "all_reduce", lambda total: total.mul_(2)
    )
    shared = make_criterion()(output, targets)
    assert shared["loss_bbox"].item() == pytest.approx(alone["loss_bbox"].item())
    name = "loss_bbox_one_to_many"
    assert shared[name].item() == pytest.approx(alone[name].item() * 6 / 1.5)


def test_the_group_has_no_encoder_loss_and_leaves_the_others_alone(detector, batch):
    torch.manual_seed(0)
    model = detector("h_deformable")
    output, targets = model.detect(model.preprocess(batch())), model.prepare_targets(batch())
    losses = model.criterion(output, targets)
    plain = SetCriterion(matcher=model.criterion.matcher, weights=model.criterion.weights)
    for name, value in plain(output, targets).items():
        assert torch.equal(losses.pop(name), value)
    assert {name.removesuffix("_one_to_many") for name in losses} == {
        f"{name}{layer}" for name in WEIGHTS for layer in ("", "_0", "_1")
    }
    # What methods ask for: the matches of the first group, for a loss of their own.
    matches = model.criterion.match(output, targets)
    assert matches.query.max() < 20


def test_no_targets_still_lead_back_to_all_predictions():
    output = make_output()
    losses = make_criterion()(output, make_targets((0, 0, 0)))
    sum(losses.values()).backward()
    assert losses["loss_bbox_one_to_many"] == 0
    assert not output.one_to_many.boxes.grad.any()
    assert output.one_to_many.logits.grad.any()


class TestLookForwardTwice:
    """Layer i's boxes: sigmoid(delta_i + logits of the box before), so that the gradient of the
    sum of boxes with respect to a bias of head i, and of the head before, is sum b (1 - b)."""

    @pytest.fixture
    def model(self, detector):
        torch.manual_seed(0)
        model = detector("h_deformable")
        for head in model.box_head:
            torch.nn.init.normal_(head.layers[-1].weight, std=0.05)
        return model

    def bias_gradients(self, model, boxes) -> list[torch.Tensor]:
        model.zero_grad()
        boxes.sum().backward(retain_graph=True)
        biases = [head.layers[-1].bias for head in model.box_head]
        return [torch.zeros(4) if b.grad is None else b.grad.clone() for b in biases]

    @pytest.mark.parametrize("group", ["one_to_one", "one_to_many"])
    def test_a_loss_reaches_two_heads(self, model, batch, group):
        output = model.detect(model.preprocess(batch()))
        output = output if group == "one_to_one" else output.one_to_many
        for layer in range(3):
            expected = (output.boxes[layer] * (1 - output.boxes[layer])).sum(dim=(0, 1)).detach()
            found = self.bias_gradients(model, output.boxes[layer])
            for head, gradient in enumerate(found):
                if head == layer or head == layer - 1:
                    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3)
                else:  # older boxes, later heads and the encoder's (head 3), which is detached
                    assert not gradient.any(), (layer, head)

    def test_looking_forward_once_reaches_one(self, model, batch):
        model.look_forward_twice = False
        output = model.detect(model.preprocess(batch()))
        found = self.bias_gradients(model, output.boxes[1])
        assert [bool(gradient.any()) for gradient in found] == [False, True, False, False]


class TestTooManyTargets:
    def make(self, detector, **queries):
        torch.manual_seed(0)
        model = detector("h_deformable")
        if queries:
            model.queries = MixedQueries(num_queries=20, hidden_dim=64, **queries)
        return model

    def test_is_an_error_that_says_what_to_change(self, detector, batch):
        data = batch(counts=(5, 6, 0))
        data[1]["file_name"] = "crowd.jpg"
        with pytest.raises(
            ValueError,
            match=r"crowd\.jpg: 6 targets with copies=6 queries each need 36 queries of the "
            r"one-to-many group, which has 30: set queries\.num_one_to_many to 36 or more, lower "
            r"criterion\.copies, or keep at most 5 boxes an image",
        ):
            self.make(detector)(data)

    def test_an_image_without_a_name_is_numbered(self, detector, batch):
        with pytest.raises(ValueError, match="image 2 of the batch: 7 targets"):
            self.make(detector)(batch(counts=(0, 5, 7)))

    def test_as_many_as_there_are_queries_is_right(self, detector, batch):
        losses = self.make(detector)(batch(counts=(5, 5, 5)))
        assert all(value.isfinite() for value in losses.values())

    def test_no_limit_without_the_group_or_when_detecting(self, detector, batch):
        data = batch(counts=(9, 0, 25))
        losses = self.make(detector, num_one_to_many=0)(data)
        assert not any(name.endswith("one_to_many") for name in losses)
        with torch.no_grad():
            assert len(self.make(detector).eval()(data)) == 3


class TestBadArguments:
    def test_numbers(self):
        with pytest.raises(ValueError, match="copies must be at least 1, got 0"):
            make_criterion(copies=0)
        with pytest.raises(ValueError, match="num_one_to_many must not be negative, got -1"):
            MixedQueries(num_one_to_many=-1)

    def test_parts_that_do_not_know_the_group(self, detector, criterion):
        model, two_stage = detector("h_deformable"), detector("deformable_two_stage")
        parts = {
            "backbone": model.backbone,
            "transformer": model.transformer,
            "queries": model.queries,
            "criterion": model.criterion,
            "num_classes": 5,
            "with_box_refine": True,
        }
        with pytest.raises(ValueError, match="queries must be MixedQueries, got ProposalQueries"):
            type(model)(**parts | {"queries": two_stage.queries})
        with pytest.raises(ValueError, match="criterion must be HybridCriterion, got SetCrit"):
            type(model)(**parts | {"criterion": criterion("focal")})
