"""What predet asks of a detector, and what these detectors say of bad input."""

from __future__ import annotations

import copy
import logging

import pytest
import torch

from predet.checkpoint import load_detector
from predet.engine.optim import parameter_groups
from predet.modeling.backbone import ResNet
from predet.projects.torchvision_detectors import FasterRCNN, RetinaNet


def test_images_are_normalised_and_padded_as_asked_for(name, parts):
    asked = {"pixel_mean": (1.0, 2.0, 3.0), "pixel_std": (2.0, 4.0, 5.0), "size_divisibility": 64}
    batch = parts.make_batch()
    pixels = parts.build(name, **asked).preprocess(batch).pixels
    assert pixels.shape[2:] == (128, 128)
    mean, std = (torch.tensor(asked[key])[:, None, None] for key in ("pixel_mean", "pixel_std"))
    torch.testing.assert_close(pixels[0, :, :64, :96], (batch[0]["image"] - mean) / std)


def test_a_class_that_the_detector_does_not_have_is_named(name, parts):
    batch = parts.make_batch()
    batch[0]["instances"].gt_classes[1] = 3
    with pytest.raises(ValueError, match=r"64x96\.png: class 3 .* 3 classes"):
        parts.build(name)(batch)


def test_a_box_that_is_not_finite_is_named(name, parts):
    batch = parts.make_batch()
    batch[0]["instances"].gt_boxes.tensor[1, 2] = float("nan")
    with pytest.raises(ValueError, match=r"64x96\.png: a box .* not finite"):
        parts.build(name)(batch)


def test_a_box_without_area_is_no_target(name, parts):
    torch.manual_seed(0)
    model = parts.build(name)
    masks = name == "mask_rcnn"
    batch = parts.make_batch(masks=masks)
    torch.manual_seed(1)
    wanted = model(batch)
    batch[0] = parts.sample(
        (64, 96),
        [[4, 4, 40, 50], [9, 9, 9, 30], [30, 20, 70, 60], [2, 30, 20, 44]],
        [0, 1, 2, 1],
        masks=masks,
    )
    torch.manual_seed(1)
    found = model(batch)
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key


def test_every_parameter_has_a_gradient_without_any_target(name, parts):
    model = parts.build(name)
    losses = model([parts.sample((64, 96), [], []), parts.sample((96, 64), [], [])])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_strides_that_do_not_double_are_refused():
    backbone = ResNet(depth=18, weights=None, norm="gn", freeze_at=0, out_stages=[2, 5])
    with pytest.raises(ValueError, match=r"strides double, got \(4, 32\)"):
        RetinaNet(backbone=backbone, num_classes=2)
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        FasterRCNN(
            backbone=ResNet(depth=18, weights=None, norm="gn", freeze_at=0, out_stages=[4, 5]),
            num_classes=0,
            representation_size=8,
        )


def test_backbone_alone_and_all_but_the_classes_transfer(name, parts):
    torch.manual_seed(0)
    source = parts.build(name)
    torch.manual_seed(1)
    target = parts.build(name)
    before = copy.deepcopy(target.state_dict())
    load_detector(target, {"model": source.state_dict()}, reinit=("all-but-backbone",))
    for key, value in target.state_dict().items():
        origin = source.state_dict() if key.startswith("backbone.") else before
        assert torch.equal(value, origin[key]), key
    report = load_detector(target, {"model": source.state_dict()}, reinit=target.class_layers)
    kept = {name.rsplit(".", 1)[0] for name in report.reinitialised}
    assert kept == set(target.class_layers)
    assert set(target.class_layers) <= set(target.last_layers)


def test_other_classes_change_exactly_the_class_layers(name, parts):
    torch.manual_seed(0)
    model = parts.build(name)
    other = parts.build(name, num_classes=5)
    changed = {
        key.rsplit(".", 1)[0]
        for key, value in model.state_dict().items()
        if other.state_dict()[key].shape != value.shape
    }
    assert changed == set(model.class_layers)


def test_mask_rcnn_without_masks_trains_boxes_and_says_so(parts, caplog):
    torch.manual_seed(0)
    model = parts.build("mask_rcnn")
    with caplog.at_level(logging.WARNING):
        torch.manual_seed(1)
        losses = model(parts.make_batch())
        model(parts.make_batch())
    assert len([r for r in caplog.records if "no masks" in r.message]) == 1
    assert losses["loss_mask"] == 0
    torch.manual_seed(1)
    with_masks = model(parts.make_batch(masks=True))
    assert with_masks["loss_mask"] > 0.1
    for key in losses.keys() - {"loss_mask"}:
        assert torch.equal(losses[key], with_masks[key]), key
    sum(losses.values()).backward()
    branch = model.network.roi_heads.mask_head
    assert all((p.grad == 0).all() for p in branch.parameters())


@pytest.mark.parametrize("exempt", [(), ("mask_head", "mask_predictor")])
def test_without_masks_only_weight_decay_changes_the_mask_branch(exempt, parts):
    torch.manual_seed(0)
    model = parts.build("mask_rcnn").train()
    groups = parameter_groups(model=model, no_weight_decay=exempt)
    optimizer = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1)
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):
        optimizer.zero_grad()
        sum(model(parts.make_batch()).values()).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        if "mask" in name:
            left = before[name] if exempt else before[name] * (1 - 1e-2 * 0.1) ** 2
            torch.testing.assert_close(value, left, rtol=0 if exempt else 1e-5, atol=0)


def test_mask_rcnn_refuses_masks_of_some_images_or_of_another_size(parts):
    model = parts.build("mask_rcnn")
    batch = parts.make_batch(masks=True)
    batch[2] = parts.make_batch()[2]
    with pytest.raises(ValueError, match=r"80x64\.png has boxes but no gt_masks"):
        model(batch)
    batch = parts.make_batch(masks=True)
    masks = batch[0]["instances"].gt_masks
    masks.tensor = masks.tensor[:, :32]
    with pytest.raises(ValueError, match=r"gt_masks must be \(3, 64, 96\)"):
        model(batch)


def test_mask_rcnn_can_leave_masks_out_of_detections(parts):
    torch.manual_seed(0)
    model = parts.build("mask_rcnn").eval()
    with torch.no_grad():
        whole = model(parts.make_batch())
        model.mask_threshold = None
        boxes = model(parts.make_batch())
    for one, other in zip(whole, boxes, strict=True):
        assert one["instances"].pred_masks.shape[1:] == one["instances"].image_size
        assert not other["instances"].has("pred_masks")
        assert torch.equal(one["instances"].pred_boxes.tensor, other["instances"].pred_boxes.tensor)
    assert model.network.roi_heads.mask_head is not None


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_options_reach_dense_detectors(name, parts):
    options = {"score_threshold": 0.1, "nms_threshold": 0.2, "candidates": 30}
    network = parts.build(name, **options, detections_per_image=4).network
    assert (network.score_thresh, network.nms_thresh) == (0.1, 0.2)
    assert (network.topk_candidates, network.detections_per_img) == (30, 4)


@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn"])
def test_options_reach_two_stage_detectors(name, parts):
    model = parts.build(
        name,
        rpn_samples=10,
        rpn_positive_fraction=0.2,
        roi_samples=30,
        roi_positive_fraction=0.4,
        proposals_train=50,
        proposals_test=60,
        score_threshold=0.1,
        nms_threshold=0.3,
        detections_per_image=7,
    )
    rpn, heads = model.network.rpn, model.network.roi_heads
    samplers = [
        (part.fg_bg_sampler.batch_size_per_image, part.fg_bg_sampler.positive_fraction)
        for part in (rpn, heads)
    ]
    assert samplers == [(10, 0.2), (30, 0.4)]
    for mode, count in ((True, 50), (False, 60)):
        rpn.train(mode)
        assert rpn.pre_nms_top_n() == rpn.post_nms_top_n() == count
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.1, 0.3, 7)


def test_masks_are_where_the_probability_reaches_the_threshold(parts):
    model = parts.build("mask_rcnn")
    model.mask_threshold = 0.75
    found = {
        "boxes": torch.tensor([[0.0, 0, 2, 2]]),
        "scores": torch.tensor([0.5]),
        "labels": torch.tensor([2]),
        "masks": torch.tensor([[[[0.7, 0.75], [0.8, 0.2]]]]),
    }
    instances = model.instances((2, 2), found)
    assert instances.pred_masks.tolist() == [[[False, True], [True, False]]]
    assert instances.pred_classes.tolist() == [1]  # torchvision's 0 is the background


def test_a_copy_of_a_compiled_detector_runs_on_its_own_weights(name, parts):
    model = parts.build(name).eval()
    model._compiled = type(model).encode  # what compile() keeps, without the compiler
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.backbone.parameters():
            parameter.mul_(0.5)
        images = model.preprocess(parts.make_batch())
        first, second = model.features(images), twin.features(images)
    assert not torch.equal(first["0"], second["0"])


def test_a_checkpoint_of_other_classes_is_refused_by_name(name, parts):
    source = parts.build(name, num_classes=5)
    with pytest.raises(ValueError, match=r"train\.reinit") as caught:
        load_detector(parts.build(name), {"model": source.state_dict()})
    for layer in source.class_layers:
        assert f"shape: {layer}.weight expected" in str(caught.value)
    assert str(caught.value).count("shape: ") == 2 * len(source.class_layers)


@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn"])
def test_regions_are_pooled_the_same_whatever_batch_comes_first(name, parts):
    """Also an image of 66 pixels, padded to 96: maps of stride 4 are over a third as high."""
    torch.manual_seed(0)
    model = parts.build(name).eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        model([parts.sample((66, 66), [], [])])
        found, wanted = model(parts.make_batch()), other(parts.make_batch())
    for one, another in zip(found, wanted, strict=True):
        assert torch.equal(one["instances"].scores, another["instances"].scores)
        boxes = [output["instances"].pred_boxes.tensor for output in (one, another)]
        assert torch.equal(*boxes)


@pytest.mark.parametrize(
    ("name", "other"), [("mask_rcnn", "faster_rcnn"), ("faster_rcnn", "mask_rcnn")]
)
def test_detectors_with_and_without_masks_take_each_others_weights(name, other, parts):
    torch.manual_seed(0)
    source, target = parts.build(name), parts.build(other)
    branch = ("network.roi_heads.mask_head", "network.roi_heads.mask_predictor")
    load_detector(target, {"model": source.state_dict()}, reinit=branch)
    for key, value in target.state_dict().items():
        if "mask" not in key:
            assert torch.equal(value, source.state_dict()[key]), key
