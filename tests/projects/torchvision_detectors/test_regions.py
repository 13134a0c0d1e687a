"""Predictions and their instances: what contrast between views is given."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_iou

from predet.modeling.regions import RegionProjector, sample_regions, take_neighbourhoods


def all_boxes(batch):
    return torch.cat([sample["instances"].gt_boxes.tensor for sample in batch])


@pytest.fixture
def model(name, parts):
    torch.manual_seed(0)
    return parts.build(name).train()


def nearest(found, known):
    """Largest difference of each row to the row that is most alike."""
    return (found[:, None] - known).abs().amax(dim=-1).amin(dim=1)


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_the_last_layer_on_features_gives_the_logits_of_these_predictions(model, name, parts):
    batch = parts.make_batch()
    layer = model.get_submodule(model.class_layers[0])
    if name == "retinanet":  # its regions have the centre of the 3 x 3 convolution only
        with torch.no_grad():
            centre = layer.weight[:, :, 1:2, 1:2].clone()
            layer.weight.zero_()
            layer.weight[:, :, 1:2, 1:2] = centre
            weight = centre.flatten(1)
    else:
        weight = layer.weight.flatten(1)
    regions = model.regions(batch, max_regions=50)
    assert regions.features.shape == (50, model.region_channels)
    images = model.preprocess(batch)
    known = model.network.head(list(model.features(images).values()))["cls_logits"].flatten(0, 1)
    found = (regions.features @ weight.T + layer.bias).unflatten(1, (model.region_slots, -1))
    found = found[torch.arange(50), regions.slots]
    assert (nearest(found, known) < 1e-4).all()


@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn"])
def test_the_last_layer_reads_the_features_of_the_instances_themselves(model, parts):
    batch = parts.make_batch()
    layer = model.get_submodule(model.class_layers[0])
    read = []
    hook = layer.register_forward_pre_hook(lambda module, arguments: read.append(arguments[0]))
    model(batch)
    hook.remove()
    regions = model.regions(batch, max_regions=100_000)
    assert regions.features.shape == (len(regions.instances), model.region_channels)
    # Both have the four instances among their regions.
    assert (nearest(regions.features, read[0]) < 1e-5).sum() >= 4


def test_instances_are_numbered_over_the_batch(model, name, parts):
    batch = parts.make_batch()
    regions = model.regions(batch, max_regions=100_000)
    counts = torch.bincount(regions.instances[regions.instances >= 0], minlength=4)
    assert (counts[[0, 1, 3]] > 0).all()
    assert regions.instances.max() == 3
    if parts.is_dense(name):
        assert (regions.instances == -1).any()
    else:
        assert (counts > 0).all()
        assert (regions.instances >= 0).all()
    # Images of one size: the regions of an image do not depend on its place in the batch.
    first, second = batch[0], parts.sample((64, 96), [[10, 12, 60, 60]], [2])
    there = model.regions([first, second], max_regions=100_000).instances
    back = model.regions([second, first], max_regions=100_000).instances
    assert (there == 3).sum() == (back == 0).sum() > 0
    assert (there == 1).sum() == (back == 2).sum() > 0


def test_a_box_without_area_keeps_its_number(model, parts):
    batch = [
        parts.sample((64, 96), [[9, 9, 9, 30], [30, 20, 70, 60]], [0, 1]),
        parts.sample((80, 64), [[10, 12, 60, 70]], [2]),
    ]
    found = model.regions(batch, max_regions=100_000).instances.unique()
    assert set(found.tolist()) - {-1} == {1, 2}


def test_at_most_so_many_and_instances_first(model, name, parts):
    batch = parts.make_batch()
    everything = model.regions(batch, max_regions=100_000).instances
    positive = int((everything >= 0).sum())
    few = model.regions(batch, max_regions=4)
    assert len(few.instances) == 4
    assert (few.instances >= 0).all()
    some = model.regions(batch, max_regions=positive + 5)
    if parts.is_dense(name):
        assert (some.instances >= 0).sum() == positive
        assert (some.instances == -1).sum() == 5


def test_dense_losses_are_those_of_training_without_the_classes(model, name, parts):
    batch = parts.make_batch()
    torch.manual_seed(2)
    wanted = model(batch)
    torch.manual_seed(2)
    found = model.regions(batch, max_regions=8).losses
    assert "loss_class" not in found
    if parts.is_dense(name):
        assert found.keys() == wanted.keys() - {"loss_class"}
        for key, value in found.items():
            torch.testing.assert_close(value, wanted[key])
    else:
        assert found.keys() == {"loss_bbox", "loss_objectness", "loss_rpn_bbox"}
        for key in ("loss_objectness", "loss_rpn_bbox"):
            torch.testing.assert_close(found[key], wanted[key])


def test_two_stage_boxes_are_regressed_by_their_class(parts):
    """Any number of instances share the rows of their class; other rows have no gradient."""
    torch.manual_seed(0)
    model = parts.build("faster_rcnn").train()
    boxes = [[x, y, x + 6, y + 6] for x in range(0, 88, 5) for y in range(0, 56, 3)]  # 342
    batch = [parts.sample((64, 96), boxes, [1] * len(boxes))]
    regions = model.regions(batch, max_regions=100_000)
    assert len(regions.instances.unique()) == len(boxes) > 256
    sum(regions.losses.values()).backward()
    gradient = model.network.roi_heads.box_predictor.bbox_pred.weight.grad.unflatten(0, (4, 4))
    assert gradient[2].abs().max() > 0
    assert (gradient[[0, 1, 3]] == 0).all()


def test_two_stage_regions_overlap_their_instances_and_learn_their_boxes(parts):
    torch.manual_seed(0)
    model = parts.build("faster_rcnn").train()
    batch = parts.make_batch()
    seen, told = [], []
    heads = model.network.roi_heads
    heads.box_roi_pool.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    heads.box_predictor.bbox_pred.register_forward_hook(lambda *call: told.append(call[2]))
    regions = model.regions(batch, max_regions=100_000)
    boxes, known = torch.cat(seen[0]), all_boxes(batch)
    overlap = box_iou(boxes, known)
    assert (overlap[torch.arange(len(overlap)), regions.instances] >= 0.5).all()
    # Faster R-CNN's targets, with torchvision's weights and its point of the smooth L1 loss.
    wanted = known[regions.instances]
    sizes, sizes_wanted = (b[:, 2:] - b[:, :2] for b in (boxes, wanted))
    steps = (wanted[:, :2] + sizes_wanted / 2 - boxes[:, :2] - sizes / 2) / sizes
    deltas = torch.cat([10 * steps, 5 * (sizes_wanted / sizes).log()], dim=1)
    labels = torch.cat([s["instances"].gt_classes for s in batch])[regions.instances] + 1
    predicted = told[0].unflatten(1, (4, 4))[torch.arange(len(labels)), labels]
    error = (predicted - deltas).abs()
    smooth = torch.where(error < 1 / 9, 4.5 * error**2, error - 1 / 18)
    torch.testing.assert_close(regions.losses["loss_bbox"], smooth.sum() / len(labels))
    assert deltas.abs().max() > 1


def test_regions_train_everything_but_what_is_frozen(model, name, parts):
    model.freeze_unused_by_regions()
    regions = model.regions(parts.make_batch(), max_regions=64)
    projector = RegionProjector(
        channels=model.region_channels, hidden_dim=16, embedding_dim=8, slots=model.region_slots
    )
    embedded = projector(regions.features, regions.slots)
    assert embedded.shape == (len(regions.instances), 8)
    (embedded.square().sum() + sum(regions.losses.values())).backward()
    trained = [p for p in [*model.parameters(), *projector.parameters()] if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    frozen = {n.rsplit(".", 1)[0] for n, p in model.named_parameters() if not p.requires_grad}
    assert model.class_layers[0] in frozen
    assert all("mask" in n or n == model.class_layers[0] for n in frozen)


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_background_is_not_drawn_from_the_padding(model, parts):
    """An image beside a larger one has the places that it has alone."""
    small, large = parts.sample((64, 96), [], []), parts.sample((128, 192), [], [])
    alone, other, together = (
        len(model.regions(images, max_regions=100_000).instances)
        for images in ([small], [large], [small, large])
    )
    assert alone < other
    assert together == alone + other
    # Instances keep their regions there.
    small = parts.sample((40, 40), [[2, 2, 40, 40]], [1])
    alone, together = (
        int((model.regions(images, max_regions=100_000).instances == 0).sum())
        for images in ([small], [small, large])
    )
    assert together == alone > 0


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_slots_count_the_anchors_of_each_place(model, parts):
    """Without boxes and padding every prediction is background, one place after the other."""
    regions = model.regions([parts.sample((64, 96), [], [])], max_regions=100_000)
    places = 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1 * 1
    assert regions.slots.tolist() == list(range(model.region_slots)) * places


def test_images_without_boxes_have_losses_without_nan(model, parts):
    regions = model.regions([parts.sample((64, 96), [], [])] * 2, max_regions=16)
    assert (regions.instances == -1).all()
    assert all(loss.isfinite() for loss in regions.losses.values())


def test_the_projector_is_two_convolutions_evaluated_at_places():
    torch.manual_seed(0)
    maps = [torch.randn(2, 6, 4, 5), torch.randn(2, 6, 2, 3)]
    projector = RegionProjector(channels=6 * 9, hidden_dim=7, embedding_dim=3, slots=2)
    image = torch.tensor([0, 1, 1, 0, 1])
    place = torch.tensor([0, 25, 7, 19, 20])
    slots = torch.tensor([0, 1, 1, 0, 1])
    found = projector(take_neighbourhoods(maps, image, place, radius=1), slots)
    first = torch.nn.functional.conv2d
    dense = []
    for level in maps:
        hidden = first(
            level, projector.hidden.weight.view(7, 6, 3, 3), projector.hidden.bias, padding=1
        ).relu()
        output = first(hidden, projector.output.weight[:, :, None, None], projector.output.bias)
        dense.append(output.view(2, 2, 3, -1))  # (B, S, D, H * W)
    dense = torch.cat(dense, dim=-1)
    for row in range(5):
        wanted = dense[image[row], slots[row], :, place[row]]
        torch.testing.assert_close(found[row], wanted)


def test_sampling_takes_instances_then_background_and_ignores_the_rest():
    assigned = torch.tensor([-1, 3, -2, 0, -1, -2, 3, -1])
    torch.manual_seed(0)
    assert sample_regions(assigned, max_regions=3).tolist() == [1, 3, 6]
    more = sample_regions(assigned, max_regions=5).tolist()
    assert {1, 3, 6} < set(more) < {0, 1, 3, 4, 6, 7}
    assert sample_regions(assigned, max_regions=99).tolist() == [0, 1, 3, 4, 6, 7]
    draws = {tuple(sample_regions(assigned, max_regions=2).tolist()) for _ in range(40)}
    assert draws == {(1, 3), (1, 6), (3, 6)}
    for nothing in (0, None):  # None: the default of AlignDet, for queries, which are few
        with pytest.raises(ValueError, match=f"max_regions must be at least 1, got {nothing}"):
            sample_regions(assigned, max_regions=nothing)
