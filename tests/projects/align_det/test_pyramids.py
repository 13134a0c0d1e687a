"""AlignDet around dense and two-stage detectors: contrast in the place of classes, any number."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from predet.checkpoint import load_detector
from predet.d2 import Boxes, Instances
from predet.pretext.semantic_targets import Objectness
from predet.projects.align_det.contrast import instance_contrast

NAMES = ("retinanet", "fcos", "faster_rcnn", "mask_rcnn")
BOX_LOSSES = {
    "retinanet": {"loss_bbox"},
    "fcos": {"loss_bbox", "loss_centerness"},
    "faster_rcnn": {"loss_bbox", "loss_objectness", "loss_rpn_bbox"},
    "mask_rcnn": {"loss_bbox", "loss_objectness", "loss_rpn_bbox"},
}
OPTIONS = {"semantic_target": Objectness(), "hidden_dim": 32, "embedding_dim": 16}


def with_boxes(sample: dict, boxes: torch.Tensor) -> dict:
    """A sample whose two views are its image, with these boxes."""
    instances = Instances(tuple(sample["image"].shape[1:]))
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    view = {"image": sample["image"], "instances": instances}
    return {**sample, **view, "views": [view, view]}


@pytest.mark.parametrize("name", NAMES)
def test_boxes_and_contrast_are_learned_without_the_class_layer(
    name, pyramid_detector, views, method
):
    model = method(pyramid_detector(name), max_regions=256, **OPTIONS)
    losses = model(views())
    assert set(losses) == {*BOX_LOSSES[name], "loss_contrast"}
    assert losses["loss_contrast"] > 0.5
    sum(losses.values()).backward()
    unused = ("class", "cls", "mask")
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.startswith("target."):
            assert not parameter.requires_grad
            continue
        assert (parameter.grad is not None) == parameter.requires_grad, parameter_name
        if not parameter.requires_grad:
            assert any(word in parameter_name for word in unused), parameter_name
    class_layer = model.detector.get_submodule(model.detector.class_layers[0])
    assert not any(p.requires_grad for p in class_layer.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_fresh_embeddings_point_in_different_directions(name, pyramid_detector, views, method):
    """Though features of a fresh head are tiny."""
    model = method(pyramid_detector(name), max_regions=128, **OPTIONS)
    regions = model.detector.regions(model.semantic_target(views()), max_regions=128)
    embedded = model.projector(regions.features, regions.slots)
    alike = regions.slots == regions.slots.mode().values  # others have rows of their own
    unit = nn.functional.normalize(embedded.detach()[alike], dim=1)
    assert unit.var(dim=0, correction=0).sum().sqrt() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_more_instances_than_the_paper_has_outputs(name, pyramid_detector, batch, method):
    """Over 256 in a batch: an id is compared, never an index."""
    corner = torch.cartesian_prod(torch.arange(13.0), torch.arange(13.0)) * 7
    boxes = torch.cat([corner, corner + 16], dim=1)
    data = [with_boxes(s, boxes) for s in batch(sizes=((112, 112),) * 2, counts=(1, 1))]
    torch.manual_seed(0)
    model = method(pyramid_detector(name), max_regions=1500, **OPTIONS)
    found = []
    regions = model.detector.regions
    model.detector.regions = lambda *a, **k: found.append(regions(*a, **k)) or found[-1]
    losses = model(data)
    assert all(loss.isfinite() for loss in losses.values())
    (online,) = found
    assert online.instances.max() >= 300
    assert len(online.instances.unique()) > 60
    embedded = model.projector(online.features, online.slots)
    ids = online.instances
    renamed = torch.where(ids >= 0, 400 - ids, ids)
    losses = [instance_contrast(embedded, i, embedded.detach(), i) for i in (ids, renamed)]
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("name", NAMES)
def test_images_without_boxes_and_a_batch_of_one(name, pyramid_detector, views, method):
    model = method(pyramid_detector(name), max_regions=128, **OPTIONS)
    for counts, sizes in (((0, 0), ((64, 96),) * 2), ((3,), ((96, 96),))):
        model.zero_grad()
        total = sum(model(views(sizes=sizes, counts=counts)).values())
        total.backward()
        assert total.isfinite()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", NAMES)
def test_what_survives_fits_a_detector_of_other_classes(name, pyramid_detector, method):
    model = method(pyramid_detector(name), max_regions=64, **OPTIONS)
    torch.manual_seed(7)
    fresh = pyramid_detector(name, num_classes=5)
    before = copy.deepcopy(fresh.state_dict())
    report = load_detector(fresh, {"model": model.state_dict()}, reinit=["last-layers"])
    last = tuple(fresh.last_layers)
    assert report.reinitialised
    assert all(tensor.startswith(last) for tensor in report.reinitialised)
    for tensor_name, value in fresh.state_dict().items():
        source = before if tensor_name in report.reinitialised else model.detector.state_dict()
        assert value.equal(source[tensor_name]), tensor_name


def test_faster_rcnn_goes_on_from_mask_rcnn(pyramid_detector, method):
    """As the recipe for COCO does."""
    model = method(pyramid_detector("mask_rcnn"), max_regions=64, **OPTIONS)
    branch = ["network.roi_heads.mask_head", "network.roi_heads.mask_predictor"]
    fresh = pyramid_detector("faster_rcnn", num_classes=5)
    report = load_detector(fresh, {"model": model.state_dict()}, reinit=["last-layers", *branch])
    assert all(name.startswith(fresh.last_layers) for name in report.reinitialised)
