"""Our detectors equal Hugging Face's of the same weights: predictions, losses, gradients."""

from __future__ import annotations

import pytest
import torch

from predet.checkpoint.published import from_published

CASES = {
    "detr": {},
    "deformable": {},
    "deformable_single_scale": {"num_levels": 1},
    "deformable_refine": {"with_box_refine": True},
    "deformable_two_stage": {"with_box_refine": True, "two_stage": True},
}


@pytest.fixture(params=CASES)
def pair(request, hf, detector, batch):
    """(ours, theirs) of equal weights, and a batch of images of three sizes."""
    name = request.param
    theirs = hf.detr(7) if name == "detr" else hf.deformable_detr(7, **CASES[name])
    ours = detector(name, norm="frozen_bn").eval()
    missing = ours.load_state_dict(from_published(theirs.state_dict()).weights)
    assert not missing.missing_keys
    assert not missing.unexpected_keys
    return ours, theirs, batch()


def labels_of(targets) -> list[dict]:
    return [
        {"class_labels": classes, "boxes": boxes}
        for classes, boxes in zip(
            targets.classes.split(list(targets.counts)),
            targets.boxes.split(list(targets.counts)),
            strict=True,
        )
    ]


def test_predictions_of_every_layer_are_equal(pair, hf):
    ours, theirs, batch = pair
    with torch.no_grad():
        images = ours.preprocess(batch)
        output = ours.detect(images)
        expected = hf.predict(theirs, images.pixels, images.pad_mask)
    assert images.pad_mask.any()
    torch.testing.assert_close(output.logits, torch.stack(expected.logits), rtol=0, atol=1e-4)
    torch.testing.assert_close(output.boxes, torch.stack(expected.boxes), rtol=0, atol=1e-4)
    # The layers and the queries must differ, or the comparison would show little.
    assert (output.logits[0] - output.logits[-1]).abs().max() > 0.1
    assert output.boxes[-1].std(dim=1).max() > 0.01
    if expected.encoder is not None:
        torch.testing.assert_close(output.encoder.logits, expected.encoder[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(output.encoder.boxes, expected.encoder[1], rtol=0, atol=1e-4)


def test_losses_and_gradients_are_equal(pair, hf):
    ours, theirs, batch = pair
    images, targets = ours.preprocess(batch), ours.prepare_targets(batch)
    losses = ours.criterion(ours.detect(images), targets)
    sum(losses.values()).backward()

    prediction = hf.predict(theirs, images.pixels, images.pad_mask)
    expected = hf.losses(theirs, prediction, labels_of(targets))
    sum(expected.values()).backward()

    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-5, msg=name)
    found = theirs.named_parameters(remove_duplicate=False)
    gradients = from_published({name: p.grad for name, p in found}).weights
    parameters = dict(ours.named_parameters())
    assert gradients.keys() == parameters.keys()
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, gradient in gradients.items():
        # Relative to the tensor's largest, for single entries are sums that cancel. Some tensors
        # have no gradient but rounding: what DETR's first self-attention mixes is all equal.
        scale = gradient.abs().max() + 1e-3 * largest
        error = (parameters[name].grad - gradient).abs().max() / scale
        # Our backbone rounds otherwise (its norms are in its convolutions), so that a ReLU or a
        # maximum that was a tie up to rounding may go the other way; tests/modeling compares the
        # gradients in fp64.
        assert error < (0.05 if name.startswith("backbone") else 1e-3), f"{name}: {error}"
