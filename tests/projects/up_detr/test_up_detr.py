"""UP-DETR: its losses against a plain re-computation, what is frozen, what depends on what."""

from __future__ import annotations

import copy
import math

import pytest
import scipy.optimize
import torch
import torchvision
from torch.nn import functional as F

from predet.checkpoint import load_detector
from predet.modeling.outputs import Queries
from predet.pretext.patch_queries import Standardize

GROUPS = {4: [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5, 3: [0] * 7 + [1] * 7 + [2] * 6}


def randomize(model: torch.nn.Module) -> torch.nn.Module:
    """Fresh heads and queries say too little."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "backbone" not in name and "input_proj" not in name:
                parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
    return model


def features_by_hand(model, batch) -> list[torch.Tensor]:
    """One (F,) for each patch of the batch."""
    mean = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
    std = torch.tensor([58.395, 57.12, 57.375])[:, None, None]
    return [
        model.detector.backbone(((patch.float() - mean) / std)[None])[-1][0].mean(dim=(1, 2))
        for sample in batch
        for patch in sample["patches"]
    ]


def condition_by_hand(model, batch, features, group: list[int], part: str):
    """Query by query."""
    layer, counts = model.patch_queries.patch2query, [len(s["patches"]) for s in batch]

    def condition(queries: Queries) -> Queries:
        rows = getattr(queries, part).clone()
        for image in range(len(batch)):
            for query, patch in enumerate(group):
                if patch < counts[image]:
                    feature = features[sum(counts[:image]) + patch]
                    rows[image, query] += layer.weight @ feature + layer.bias
        blocked = torch.tensor([[a != b for b in group] for a in group])
        return queries._replace(**{part: rows}, attention_mask=blocked)

    return condition


def losses_by_hand(model, output, batch, features, group, *, own_group: bool):
    """All losses with plain loops; the features of a patch are those of the matched box."""
    softmax = output.logits.shape[-1] == 6
    found: dict[str, torch.Tensor] = {}
    num_boxes = max(sum(len(s["instances"]) for s in batch), 1)
    layers, images, num_queries = output.boxes.shape[:3]
    for layer in range(layers):
        suffix = "" if layer == layers - 1 else f"_{layer}"
        total = dict.fromkeys(("class", "bbox", "giou", "feature"), torch.zeros(()))
        weights, row = 0.0, 0
        for image in range(images):
            size = torch.tensor([*batch[image]["image"].shape[:0:-1]] * 2)
            wanted = batch[image]["instances"].gt_boxes.tensor / size
            logits, boxes = output.logits[layer, image], output.boxes[layer, image]
            corners = torchvision.ops.box_convert(boxes, "cxcywh", "xyxy")
            l1 = torch.cdist(torchvision.ops.box_convert(wanted, "xyxy", "cxcywh"), boxes, p=1)
            giou = torchvision.ops.generalized_box_iou(wanted, corners)
            if softmax:
                score = -logits.softmax(-1)[:, 0].expand_as(l1)
                cost = score + 5 * l1 - 2 * giou
            else:
                p = logits[:, 0].sigmoid()
                yes = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log()
                no = 0.75 * p**2 * -(1 - p + 1e-8).log()
                cost = 2 * (yes - no) + 5 * l1 - 2 * giou
            if own_group:
                apart = torch.tensor(group) != torch.arange(len(wanted))[:, None]
                cost = cost + 1e4 * apart
            targets, queries = scipy.optimize.linear_sum_assignment(cost.detach().numpy())
            classes = torch.full((num_queries,), 5)
            for target, query in zip(targets, queries, strict=True):
                classes[query] = 0
                total["bbox"] = total["bbox"] + 5 * l1[target, query] / num_boxes
                total["giou"] = total["giou"] + 2 * (1 - giou[target, query]) / num_boxes
                if model.feature_target is not None:
                    told = model.feature_target.head(output.hidden[layer, image, query])
                    told, seen = (
                        F.normalize(told, dim=0),
                        F.normalize(features[row + target], dim=0),
                    )
                    total["feature"] = total["feature"] + ((told - seen) ** 2).sum() / num_boxes
            row += len(wanted)
            if softmax:  # equation 1: M / N for queries without a patch
                of_class = torch.where(classes == 5, model.patch_queries.num_patches / 20, 1.0)
                nll = -logits.log_softmax(-1)[torch.arange(num_queries), classes]
                total["class"] = total["class"] + (of_class * nll).sum()
                weights += of_class.sum().item()
            else:
                one = torch.zeros_like(logits)
                one[classes == 0, 0] = 1
                focal = torchvision.ops.sigmoid_focal_loss(logits, one)
                total["class"] = total["class"] + 2 * focal.sum() / num_boxes
        if softmax:
            total["class"] = total["class"] / weights
        for name, value in total.items():
            if name != "feature" or model.feature_target is not None:
                found[f"loss_{name}{suffix}"] = value
    return found


@pytest.mark.parametrize("matching", ["all", "group"])
@pytest.mark.parametrize(
    ("name", "part", "num_patches", "counts"),
    [
        ("detr_pre_norm", "position", 4, (4, 4)),
        ("detr_pre_norm", "position", 3, (3, 1)),
        ("deformable", "content", 4, (4, 2)),
        ("deformable_refine", "position", 3, (3, 3)),
    ],
)
def test_losses_equal_a_plain_recomputation(
    detector, updetr, patch_batch, name, part, num_patches, counts, matching
):
    torch.manual_seed(0)
    model = updetr(detector(name), num_patches=num_patches, add_to=part, matching=matching)
    randomize(model).train()
    batch, group = patch_batch(counts), GROUPS[num_patches]
    losses = model(batch)
    features = features_by_hand(model, batch)
    condition = condition_by_hand(model, batch, features, group, part)
    output = model.detector.detect(model.detector.preprocess(batch), condition)
    wanted = losses_by_hand(model, output, batch, features, group, own_group=matching == "group")
    assert losses.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(
            losses[key], value, atol=1e-5, rtol=2e-5, msg=lambda m, k=key: k + m
        )


def test_without_reconstruction_there_is_no_head(detector, updetr, patch_batch):
    model = updetr(detector("detr"), reconstruction_weight=0.0).train()
    assert not any("feature" in name for name in model.state_dict())
    assert not any("feature" in name for name in model(patch_batch()))


def test_options_of_the_queries_reach_them(detector, updetr):
    options = {
        "num_patches": 3,
        "add_to": "content",
        "shuffle": True,
        "mask": "patches",
        "mask_probability": 0.3,
        "groups_apart": False,
    }
    queries = updetr(detector("detr"), standardize=True, **options).patch_queries
    assert {name: getattr(queries, name) for name in options} == options
    assert isinstance(queries.standardize, Standardize)


def test_the_two_matchings_differ(detector, updetr, patch_batch):
    torch.manual_seed(0)
    model = randomize(updetr(detector("detr"))).train()
    free = model(patch_batch())
    model.matching = "group"
    assert model(patch_batch())["loss_bbox"] > free["loss_bbox"]


@pytest.mark.parametrize(("num_patches", "weight"), [(1, 0.05), (4, 0.2), (20, 1.0)])
def test_no_object_weighs_as_many_patches_as_there_are_queries(
    detector, updetr, num_patches, weight
):
    model = updetr(detector("detr"), num_patches=num_patches)
    assert model.detector.criterion.no_object_weight == pytest.approx(weight)


def test_steps_with_every_detector_and_any_number_of_patches(
    any_detector, detector_name, updetr, patch_batch
):
    part = "position" if detector_name.startswith("detr") else "content"
    for counts in ((4, 4), (1, 0), (0, 0)):
        model = updetr(copy.deepcopy(any_detector), add_to=part, mask_probability=0.1).train()
        losses = model(patch_batch(counts))
        assert {"loss_class", "loss_bbox", "loss_giou", "loss_feature"} <= set(losses)
        assert all(value.isfinite() for value in losses.values())
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_single_patch_is_on_every_query(detector, updetr, patch_batch):
    torch.manual_seed(0)
    model = randomize(updetr(detector("detr"), num_patches=1)).train()
    batch = patch_batch((1, 1))
    output = model.detector.detect(
        model.detector.preprocess(batch), model.condition(batch, model.encode_patches(batch))
    )
    feature = model.patch_queries.patch2query(torch.stack(features_by_hand(model, batch)))
    wanted = model.detector.detect(
        model.detector.preprocess(batch),
        lambda q: q._replace(position=q.position + feature[:, None]),
    )
    torch.testing.assert_close(output.boxes, wanted.boxes, atol=1e-5, rtol=1e-4)


def test_a_group_does_not_see_the_others_patches(detector, updetr, patch_batch):
    torch.manual_seed(0)
    model = randomize(updetr(detector("detr"))).eval()
    batch = patch_batch()
    before = model.localize(batch)
    batch[0]["patches"][2] = 255 - batch[0]["patches"][2]
    after = model.localize(batch)
    changed = (before[0].boxes - after[0].boxes).abs().amax(dim=1)
    assert changed[2] > 1e-3
    assert changed[[0, 1, 3]].max() < 1e-3 * changed[2]
    torch.testing.assert_close(before[1].boxes, after[1].boxes)


class TestBackbone:
    def test_frozen_it_stays_and_patches_give_it_no_gradient(self, detector, updetr, patch_batch):
        model = updetr(detector("detr", norm="frozen_bn"), freeze_backbone=True).train()
        batch = patch_batch()
        assert not model.encode_patches(batch).requires_grad
        sum(model(batch).values()).backward()
        assert all(p.grad is None for p in model.detector.backbone.parameters())
        assert model.patch_queries.patch2query.weight.grad.abs().sum() > 0

    def test_trained_it_learns_from_patches_in_queries_but_not_as_targets(
        self, detector, updetr, patch_batch
    ):
        torch.manual_seed(0)
        model = randomize(updetr(detector("detr"))).train()
        batch = patch_batch()
        features = model.encode_patches(batch)
        images = model.detector.preprocess(batch)
        targets = model.detector.prepare_targets(model.semantic_target(batch))
        output = model.detector.detect(images, model.condition(batch, features))
        matches = model.match(output, targets)
        (reached,) = torch.autograd.grad(output.boxes.sum(), features, retain_graph=True)
        assert reached.abs().sum() > 0
        output = output._replace(hidden=output.hidden.detach())
        loss = model.feature_target(output, targets, matches, features)["loss_feature"]
        assert torch.autograd.grad(loss, features, allow_unused=True) == (None,)


def test_only_the_detector_transfers(detector, updetr):
    torch.manual_seed(0)
    model = updetr(detector("detr_pre_norm"))
    torch.manual_seed(1)
    other = detector("detr_pre_norm")
    load_detector(other, {"model": model.state_dict()})
    assert all(v.equal(model.detector.state_dict()[k]) for k, v in other.state_dict().items())


class TestErrors:
    def test_more_patches_than_queries(self, detector, updetr):
        with pytest.raises(ValueError, match="20 queries cannot be divided into 21 groups"):
            updetr(detector("deformable"), num_patches=21)

    def test_more_patches_in_an_image_than_groups(self, detector, updetr, patch_batch):
        with pytest.raises(ValueError, match=r"5 patches, but .* num_patches=4 groups"):
            updetr(detector("detr")).train()(patch_batch((5, 4)))

    def test_more_copies_than_one_to_many_queries(self, detector, updetr, patch_batch):
        model = updetr(detector("h_deformable"), num_patches=6).train()
        with pytest.raises(ValueError, match=r"6 targets with copies=6 .* which has 30"):
            model(patch_batch((6, 6)))

    def test_a_batch_without_patches(self, detector, updetr, batch):
        with pytest.raises(ValueError, match="needs 'patches'"):
            updetr(detector("detr")).train()(batch())

    def test_an_unknown_matching(self, detector, updetr):
        with pytest.raises(ValueError, match=r"matching must be one of .* got 'none'"):
            updetr(detector("detr"), matching="none")

    def test_localizing_while_training(self, detector, updetr, patch_batch):
        with pytest.raises(ValueError, match="evaluation mode"):
            updetr(detector("detr")).train().localize(patch_batch())


def test_detecting_is_that_of_the_detector(detector, updetr, patch_batch):
    torch.manual_seed(0)
    model = randomize(updetr(detector("detr"))).eval()
    batch = patch_batch()
    with torch.no_grad():
        found, wanted = model(batch), model.detector(batch)
    assert torch.equal(found[0]["instances"].scores, wanted[0]["instances"].scores)
    assert math.isfinite(found[0]["instances"].scores.sum())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detr", "h_deformable"])
def test_patches_compile_into_one_graph_that_serves_every_batch(
    detector, updetr, patch_batch, name
):
    torch.manual_seed(0)
    model = updetr(detector(name), shuffle=True, mask_probability=0.1).train()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model.detector.compile(backend="eager", fullgraph=True)
    for seed in range(3):
        losses = model(patch_batch(seed=seed))
        assert all(value.isfinite() for value in losses.values())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
