"""What every detector promises, run on all of them."""

from __future__ import annotations

import copy

import pytest
import torch

from predet.modeling.images import resize_pad_mask
from predet.modeling.outputs import Queries

LOSSES = {"loss_class", "loss_bbox", "loss_giou"}


def no_labels(batch):
    batch = copy.deepcopy(batch)
    for sample in batch:
        sample["instances"] = sample["instances"][:0]
    return batch


def test_training_returns_weighted_losses_of_all_layers(any_detector, detector_name, batch):
    losses = any_detector(batch())
    names = LOSSES | {f"{name}_{layer}" for name in LOSSES for layer in (0, 1)}
    if detector_name == "h_deformable":
        names |= {f"{name}_one_to_many" for name in names}
    if detector_name in ("deformable_two_stage", "h_deformable"):
        names |= {f"{name}_enc" for name in LOSSES}
    assert losses.keys() == names
    assert all(loss.ndim == 0 and loss.isfinite() and loss > 0 for loss in losses.values())


@pytest.mark.parametrize("empty", [False, True], ids=["targets", "no_targets"])
def test_every_trainable_parameter_gets_a_gradient(any_detector, batch, empty):
    """So that data-parallel training never waits for an unused one."""
    data = no_labels(batch()) if empty else batch()
    losses = any_detector(data)
    sum(losses.values()).backward()
    for name, parameter in any_detector.named_parameters():
        assert parameter.requires_grad
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    if empty:
        assert all(losses[name] == 0 for name in losses if not name.startswith("loss_class"))


def test_one_image_of_the_batch_without_targets(any_detector, batch):
    data = batch()
    data[1] = no_labels([data[1]])[0]
    losses = any_detector(data)
    assert all(loss.isfinite() for loss in losses.values())


def test_detections_lie_in_the_original_image(any_detector, batch):
    any_detector.eval()
    data = batch()
    with torch.no_grad():
        results = any_detector(data)
    assert len(results) == len(data)
    for sample, result in zip(data, results, strict=True):
        instances = result["instances"]
        assert instances.image_size == (sample["height"], sample["width"])
        boxes = instances.pred_boxes.tensor
        assert boxes.dtype == torch.float32
        limit = torch.tensor([sample["width"], sample["height"]] * 2)
        assert ((boxes >= 0) & (boxes <= limit)).all()
        assert ((instances.scores > 0) & (instances.scores < 1)).all()
        assert set(instances.pred_classes.tolist()) <= set(range(any_detector.num_classes))


def test_detecting_needs_no_labels(any_detector, batch):
    any_detector.eval()
    data = batch()
    with torch.no_grad():
        expected = any_detector(data)
        for sample in data:
            del sample["instances"]
        results = any_detector(data)
    for result, wanted in zip(results, expected, strict=True):
        assert torch.equal(result["instances"].scores, wanted["instances"].scores)


def test_one_label_a_query(any_detector, batch):
    any_detector.eval()
    with torch.no_grad():
        labels = any_detector.label(batch())
    assert [len(instances) for instances in labels] == [20, 20, 20]


def test_what_lies_under_the_padding_changes_nothing_to_the_bit(any_detector, batch):
    """At the transformer's seam: the backbone smears padding into its border, as any would."""
    any_detector.eval()
    images = any_detector.preprocess(batch())
    with torch.no_grad():
        maps = any_detector.project(any_detector.backbone(images.pixels))
        expected = any_detector.transform(maps, images.pad_mask)
        masks = [resize_pad_mask(images.pad_mask, m.shape[-2:])[:, None] for m in maps]
        assert all(mask.any() for mask in masks)
        for spoil in (1e3, -77.0):
            spoiled = [m.masked_fill(mask, spoil) for m, mask in zip(maps, masks, strict=True)]
            output = any_detector.transform(spoiled, images.pad_mask)
            assert torch.equal(output.logits, expected.logits)
            assert torch.equal(output.boxes, expected.boxes)
            if output.encoder is not None:
                assert torch.equal(output.encoder.logits, expected.encoder.logits)
                assert torch.equal(output.encoder.boxes, expected.encoder.boxes)
        # It is the mask that does it: without one the same content changes the result.
        no_mask = torch.zeros_like(images.pad_mask)
        first, second = (any_detector.transform(m, no_mask).logits for m in (maps, spoiled))
        assert not torch.allclose(first, second)


def test_batch_of_one_equals_batch_of_many(any_detector, batch):
    """To rounding where nothing is padded: sums are split otherwise for other batch sizes.

    With padding the backbone sees zeros where an image alone has its border, so a whole model
    could only be compared loosely; the transformer's part is exact, see above.
    """
    any_detector.eval()
    data = batch(sizes=((96, 128),) * 3)
    with torch.no_grad():
        together = any_detector.detect(any_detector.preprocess(data))
        for index, sample in enumerate(data):
            alone = any_detector.detect(any_detector.preprocess([sample]))
            for found, wanted in ((together.logits, alone.logits), (together.boxes, alone.boxes)):
                torch.testing.assert_close(found[:, index], wanted[:, 0], atol=1e-4, rtol=1e-4)


def test_more_padding_changes_nothing_that_the_transformer_sees(any_detector, batch):
    """The same maps on a larger canvas: positions and references follow the image alone."""
    any_detector.eval()
    images = any_detector.preprocess(batch(sizes=((128, 128),), counts=(2,)))
    canvas = torch.ones(1, 192, 256, dtype=torch.bool)
    canvas[:, :128, :128] = False
    with torch.no_grad():
        maps = any_detector.project(any_detector.backbone(images.pixels))
        expected = any_detector.transform(maps, images.pad_mask)
        larger = [
            torch.nn.functional.pad(m, (0, m.shape[3], 0, m.shape[2] // 2), value=9.0) for m in maps
        ]
        output = any_detector.transform(larger, canvas)
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.boxes, expected.boxes, atol=1e-5, rtol=1e-4)


def test_state_dict_round_trip(any_detector, detector_name, detector, batch):
    torch.manual_seed(99)
    other = detector(detector_name)
    data = batch()
    any_detector.eval()
    other.eval()
    with torch.no_grad():
        expected = any_detector.detect(any_detector.preprocess(data))
        assert not torch.equal(other.detect(other.preprocess(data)).logits, expected.logits)
        other.load_state_dict(any_detector.state_dict())
        output = other.detect(other.preprocess(data))
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.boxes, expected.boxes)
    names = any_detector.state_dict().keys()
    assert {name.split(".")[0] for name in names} >= {"backbone", "class_head", "box_head"}
    assert not any("pixel" in name for name in names)


def test_autocast_keeps_boxes_and_losses_in_fp32(any_detector, batch):
    data = batch()
    exact = any_detector(data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = any_detector.detect(any_detector.preprocess(data))
        losses = any_detector(data)
    assert output.logits.dtype == torch.bfloat16  # autocast did act
    assert output.boxes.dtype == torch.float32
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.2, abs=0.2), name
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in any_detector.parameters())


def test_conditioned_queries_reach_the_decoder(any_detector, batch):
    """The seam for pre-training: fewer queries, other positions, groups apart."""
    any_detector.eval()
    data = batch()
    images = any_detector.preprocess(data)

    def first_half(queries: Queries) -> Queries:
        return Queries(*(x if x is None else x[:, :10] for x in queries))

    def two_groups(queries: Queries) -> Queries:
        group = torch.arange(20) // 10
        return queries._replace(attention_mask=group[:, None] != group[None])

    def moved(queries: Queries) -> Queries:
        return queries._replace(position=queries.position + 1)

    with torch.no_grad():
        plain = any_detector.detect(images)
        half = any_detector.detect(images, first_half)
        grouped = any_detector.detect(images, two_groups)
        assert half.logits.shape[2] == 10
        # A group of its own behaves as if it were alone.
        torch.testing.assert_close(grouped.logits[:, :, :10], half.logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(grouped.boxes[:, :, :10], half.boxes, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(plain.logits[:, :, :10], half.logits, atol=1e-4)
        assert not torch.allclose(any_detector.detect(images, moved).logits, plain.logits)


def test_a_class_that_the_model_does_not_have_is_named(any_detector, batch):
    data = batch()
    data[0]["file_name"] = "cat.jpg"
    data[0]["instances"].gt_classes[0] = 5
    with pytest.raises(ValueError, match=r"cat\.jpg: class 5 .* 5 classes"):
        any_detector(data)
