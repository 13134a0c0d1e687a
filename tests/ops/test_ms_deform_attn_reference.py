"""The PyTorch references of multi-scale deformable attention against an oracle of plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from predet.ops.ms_deform_attn import (
    ms_deform_attn,
    ms_deform_attn_fused,
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
    sampling_locations,
)

SHAPES = [(5, 7), (3, 2), (1, 1)]  # odd, not square, one pixel


def problem(corners: int = 2, dtype=torch.float64, seed: int = 0) -> dict:
    """Two images, three heads of five channels, six queries, four points, inside and outside."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=dtype)

    pixels = sum(h * w for h, w in SHAPES)
    size = [rand(2, 6, 3, 2) * 0.5] if corners == 4 else []
    return {
        "value": rand(2, pixels, 3, 5) - 0.5,
        "reference_points": torch.cat([rand(2, 6, 3, 2), *size], dim=-1),
        "offsets": 4 * (rand(2, 6, 3, 3, 4, 2) - 0.5),
        "logits": 4 * (rand(2, 6, 3, 3, 4) - 0.5),
    }


def bilinear(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """(H, W, C) at a point in pixels where pixel (0, 0) is centred at (0.5, 0.5)."""
    height, width, channels = image.shape
    result = np.zeros(channels)
    left, top = math.floor(x - 0.5), math.floor(y - 0.5)
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < height and 0 <= column < width:
                share = (1 - abs(x - 0.5 - column)) * (1 - abs(y - 0.5 - row))
                result += share * image[row, column]
    return result


def plain_loops(value, reference_points, offsets, logits) -> np.ndarray:
    """The fused operator, one sample at a time, from the formulas of the paper."""
    images, queries, heads, _, points = logits.shape
    output = np.zeros((images, queries, heads, value.shape[3]))
    for b, q, h in np.ndindex(images, queries, heads):
        weights = np.exp(logits[b, q, h])
        weights = weights / weights.sum()
        start = 0
        for level, (height, width) in enumerate(SHAPES):
            stop = start + height * width
            image = value[b, start:stop, h].reshape(height, width, -1)
            start = stop
            reference = reference_points[b, q, level]
            for p in range(points):
                dx, dy = offsets[b, q, h, level, p]
                if len(reference) == 2:
                    x, y = reference[0] * width + dx, reference[1] * height + dy
                else:
                    x = (reference[0] + dx / points * reference[2] / 2) * width
                    y = (reference[1] + dy / points * reference[3] / 2) * height
                output[b, q, h] += weights[level, p] * bilinear(image, x, y)
    return output.reshape(images, queries, -1)


def to_numpy(p: dict) -> dict:
    return {name: tensor.numpy() for name, tensor in p.items()}


@pytest.mark.parametrize("corners", [2, 4])
def test_fused_reference_equals_plain_loops(corners):
    p = problem(corners)
    output = ms_deform_attn_fused_reference(p.pop("value"), SHAPES, **p)
    np.testing.assert_allclose(output, plain_loops(**to_numpy(problem(corners))), atol=1e-12)


def test_the_two_forms_agree():
    p = problem(4)
    locations = sampling_locations(p["reference_points"], p["offsets"], SHAPES)
    weights = p["logits"].flatten(3).softmax(-1).view_as(p["logits"])
    split = ms_deform_attn_reference(p["value"], SHAPES, locations, weights)
    fused = ms_deform_attn_fused_reference(p.pop("value"), SHAPES, **p)
    torch.testing.assert_close(split, fused)


def half_a_pixel(p: dict) -> dict:
    return {**p, "offsets": p["offsets"] + 0.5}


def swapped_axes(p: dict) -> dict:
    return {
        **p,
        "offsets": p["offsets"].flip(-1),
        "reference_points": p["reference_points"].flip(-1),
    }


def levels_reversed(p: dict) -> dict:
    return {**p, "logits": p["logits"].flip(3)}


def heads_rolled(p: dict) -> dict:
    return {**p, "value": p["value"].roll(1, dims=2)}


def equal_weights(p: dict) -> dict:
    return {**p, "logits": torch.zeros_like(p["logits"])}


@pytest.mark.parametrize(
    "spoil", [half_a_pixel, swapped_axes, levels_reversed, heads_rolled, equal_weights]
)
def test_a_wrong_operator_would_be_seen(spoil):
    p = spoil(problem(2))
    wrong = ms_deform_attn_fused_reference(p.pop("value"), SHAPES, **p)
    error = np.abs(wrong.numpy() - plain_loops(**to_numpy(problem(2))))
    # Thousands of times the tolerance of any comparison, and of outputs of about 0.1.
    assert error.max() > 0.02


@pytest.mark.parametrize("corners", [2, 4])
def test_gradients(corners):
    names = ("value", "reference_points", "offsets", "logits")
    p = problem(corners)
    inputs = tuple(p[name][:1].clone().requires_grad_() for name in names)

    def function(value, *rest):
        return ms_deform_attn_fused_reference(value, SHAPES, *rest)

    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize(("batch", "queries"), [(0, 6), (2, 0)])
def test_nothing_to_do(batch, queries):
    p = {name: tensor[:batch] for name, tensor in problem().items()}
    value = p.pop("value").requires_grad_()
    p = {name: tensor[:, :queries] for name, tensor in p.items()}
    output = ms_deform_attn_fused_reference(value, SHAPES, **p)
    assert output.shape == (batch, queries, 15)
    output.sum().backward()
    assert not value.grad.any()


def test_inputs_need_not_be_contiguous():
    p = problem()
    expected = ms_deform_attn_fused(p["value"], SHAPES, *list(p.values())[1:])
    strided = {
        name: tensor.transpose(0, 1).contiguous().transpose(0, 1) for name, tensor in p.items()
    }
    assert not strided["value"].is_contiguous()
    found = ms_deform_attn_fused(strided["value"], SHAPES, *list(strided.values())[1:])
    torch.testing.assert_close(found, expected)


def test_low_precision_values_are_sampled_at_fp32_locations():
    p = problem(dtype=torch.float32)
    exact = ms_deform_attn_fused_reference(p["value"], SHAPES, *list(p.values())[1:])
    low = ms_deform_attn_fused_reference(p["value"].bfloat16(), SHAPES, *list(p.values())[1:])
    assert low.dtype == torch.bfloat16
    rounding = p["value"].abs().max() * 2**-8
    assert (low - exact).abs().max() < 2 * rounding


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": torch.zeros(2, 41, 3, 5)}, "41 pixels, but levels .* have 42"),
        ({"offsets": torch.zeros(2, 6, 3, 2, 4, 2)}, r"got \(2, 6, 3, 2, 4, 2\)"),
        ({"logits": torch.zeros(2, 6, 3, 3, 5)}, r"got \(2, 6, 3, 3, 5\)"),
        ({"reference_points": torch.zeros(2, 6, 3, 3)}, r"got \(2, 6, 3, 3\)"),
        ({"value": torch.zeros(2, 42, 15)}, r"got \(2, 42, 15\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    p = {**problem(), **change}
    with pytest.raises(ValueError, match=message):
        ms_deform_attn_fused(p.pop("value"), SHAPES, **p)


def test_classic_form_checks_too():
    p = problem()
    with pytest.raises(ValueError, match="weights or logits"):
        ms_deform_attn(p["value"], SHAPES, p["offsets"], p["logits"][:, :5])
