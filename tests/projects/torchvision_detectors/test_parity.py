"""Losses and detections are those of torchvision's own models with the same weights."""

from __future__ import annotations

import pytest
import torch

OUR_NAMES = {
    "classification": "loss_class",
    "bbox_regression": "loss_bbox",
    "bbox_ctrness": "loss_centerness",
    "loss_classifier": "loss_class",
    "loss_box_reg": "loss_bbox",
    "loss_rpn_box_reg": "loss_rpn_bbox",
}


def raw_inputs(name, batch, parts):
    """Images in [0, 1], and targets with torchvision's labels."""
    images = [sample["image"].float() / 255 for sample in batch]
    targets = []
    for sample in batch:
        instances = sample["instances"]
        target = {
            "boxes": instances.gt_boxes.tensor,
            "labels": instances.gt_classes + (not parts.is_dense(name)),
        }
        if name == "mask_rcnn":
            empty = torch.zeros(0, *sample["image"].shape[1:], dtype=torch.uint8)
            target["masks"] = instances.gt_masks.tensor.to(torch.uint8) if len(instances) else empty
        targets.append(target)
    return images, targets


def test_losses_are_torchvisions(name, parts):
    torch.manual_seed(0)
    model = parts.build(name, defaults=True).train()
    raw = parts.build_raw(name, model).train()
    batch = parts.make_batch(masks=name == "mask_rcnn")
    torch.manual_seed(1)
    found = model(batch)
    torch.manual_seed(1)  # anchors and proposals are sampled
    wanted = raw(*raw_inputs(name, batch, parts))
    assert found.keys() == {OUR_NAMES.get(key, key) for key in wanted}
    for key, value in wanted.items():
        ours = found[OUR_NAMES.get(key, key)]
        torch.testing.assert_close(ours, value, rtol=1e-4, atol=1e-6, msg=key)
        assert value > 0
    sum(found.values()).backward()
    sum(wanted.values()).backward()
    theirs = dict(raw.named_parameters())
    for key, parameter in model.named_parameters():
        other = theirs[
            key.replace("backbone.", "backbone.body.")
            .replace("neck.", "backbone.fpn.")
            .replace("network.", "")
        ]
        # Group normalisation of maps of one pixel makes much of rounding.
        scale = other.grad.abs().max() + 1e-6
        assert (parameter.grad - other.grad).abs().max() < 1e-2 * scale, key


def test_detections_are_torchvisions(name, parts):
    torch.manual_seed(0)
    model = parts.build(name, defaults=True).eval()
    raw = parts.build_raw(name, model).eval()
    batch = parts.make_batch()
    with torch.no_grad():
        found = model(batch)
        wanted = raw(raw_inputs("retinanet", batch, parts)[0])
    assert sum(len(output["boxes"]) for output in wanted) > 20
    for ours, theirs in zip(found, wanted, strict=True):
        instances = ours["instances"]
        torch.testing.assert_close(instances.scores, theirs["scores"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            instances.pred_boxes.tensor, theirs["boxes"], rtol=1e-4, atol=1e-3
        )
        first = 0 if parts.is_dense(name) else 1
        assert torch.equal(instances.pred_classes, theirs["labels"] - first)
        if name == "mask_rcnn":
            differing = instances.pred_masks != (theirs["masks"][:, 0] >= 0.5)
            assert differing.float().mean() < 1e-3


def test_detections_scale_to_the_original_image(name, parts):
    torch.manual_seed(0)
    model = parts.build(name).eval()
    batch = parts.make_batch()
    with torch.no_grad():
        small = model(batch)
        for sample in batch:
            sample["height"], sample["width"] = 2 * sample["height"], 3 * sample["width"]
        large = model(batch)
    for one, other in zip(small, large, strict=True):
        boxes = one["instances"].pred_boxes.tensor * torch.tensor([3.0, 2, 3, 2])
        torch.testing.assert_close(boxes, other["instances"].pred_boxes.tensor)
        assert torch.equal(one["instances"].scores, other["instances"].scores)


def test_boxes_and_losses_are_fp32_under_autocast(name, parts):
    torch.manual_seed(0)
    model = parts.build(name)
    batch = parts.make_batch()
    torch.manual_seed(1)
    exact = model(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = model.features(model.preprocess(batch))
        assert {m.dtype for m in maps.values()} == {torch.float32}
        torch.manual_seed(1)
        losses = model(batch)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    for key, loss in losses.items():
        assert loss.item() == pytest.approx(exact[key].item(), rel=0.15, abs=0.05), key
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        instances = model(batch)[0]["instances"]
    assert instances.pred_boxes.tensor.dtype == instances.scores.dtype == torch.float32
    boxes = instances.pred_boxes.tensor
    # bf16 would leave them on a coarse grid.
    assert (boxes.to(torch.bfloat16).float() - boxes).abs().max() > 1e-3
