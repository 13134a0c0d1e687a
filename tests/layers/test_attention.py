"""Attention layers against PyTorch's and against plain formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from predet.layers.attention import MultiHeadAttention
from predet.layers.deformable_attention import MultiScaleDeformableAttention


@pytest.fixture
def pair():
    """Ours and PyTorch's of the same weights, and inputs."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(24, 3, batch_first=True)
    nn.init.normal_(theirs.in_proj_bias)
    ours = MultiHeadAttention(hidden_dim=24, num_heads=3)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs, torch.randn(2, 5, 24), torch.randn(2, 7, 24), torch.randn(2, 7, 24)


def test_equals_pytorch(pair):
    ours, theirs, query, key, value = pair
    expected = theirs(query, key, value, need_weights=False)[0]
    torch.testing.assert_close(ours(query, key, value), expected)


def test_self_attention_takes_the_same_path_to_the_same_result(pair):
    ours, theirs, query, _, _ = pair
    value = query * 2
    expected = theirs(query, query, value, need_weights=False)[0]
    torch.testing.assert_close(ours(query, query, value), expected)
    torch.testing.assert_close(ours(query, query.clone(), value), expected)


@pytest.mark.parametrize("masks", ["none", "bool", "float"])
def test_bfloat16_comes_near_to_fp32(pair, masks):
    ours, _, query, key, value = pair
    options = {}
    if masks != "none":
        options["pad_mask"] = torch.arange(7).expand(2, 7) >= 5
        blocked = torch.arange(7).expand(5, 7) == 3
        options["attention_mask"] = blocked if masks == "bool" else torch.randn(5, 7)
    found, gradients = [], []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            result = ours(query, key, value, **options)
        gradients.append(torch.autograd.grad(result.float().square().sum(), ours.in_proj_weight)[0])
        found.append(result)
    assert [result.dtype for result in found] == [torch.float32, torch.bfloat16]
    torch.testing.assert_close(found[1].float(), found[0], rtol=0.02, atol=0.02)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0.05, atol=0.1)


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks_equal_pytorch(pair, kind):
    ours, theirs, query, key, value = pair
    pad_mask = torch.zeros(2, 7, dtype=torch.bool)
    pad_mask[1, 4:] = True
    blocked = torch.rand(5, 7) < 0.3
    blocked[:, 0] = False
    # Theirs wants both masks of one kind.
    their_mask = torch.zeros(5, 7).masked_fill(blocked, float("-inf"))
    their_pad = torch.zeros(2, 7).masked_fill(pad_mask, float("-inf"))
    if kind == "float":
        bias = torch.randn(5, 7)
        their_mask = their_mask + bias
    expected = theirs(
        query, key, value, attn_mask=their_mask, key_padding_mask=their_pad, need_weights=False
    )[0]
    our_mask = blocked if kind == "bool" else their_mask
    found = ours(query, key, value, pad_mask=pad_mask, attention_mask=our_mask)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, ours(query, key, value, attention_mask=our_mask))
    assert not torch.allclose(found, ours(query, key, value, pad_mask=pad_mask))


def test_masks_of_each_image_and_head(pair):
    ours, _, query, key, value = pair
    mask = torch.rand(2, 5, 7) < 0.5
    mask[..., 0] = False
    per_image = ours(query, key, value, attention_mask=mask)
    per_head = ours(query, key, value, attention_mask=mask[:, None].expand(-1, 3, -1, -1))
    torch.testing.assert_close(per_image, per_head)
    alone = ours(query[1:], key[1:], value[1:], attention_mask=mask[1])
    torch.testing.assert_close(per_image[1:], alone)


def test_masked_keys_change_nothing_to_the_bit(pair):
    ours, _, query, key, value = pair
    pad_mask = torch.zeros(2, 7, dtype=torch.bool)
    pad_mask[:, 4:] = True
    other_key, other_value = key.clone(), value.clone()
    other_key[:, 4:], other_value[:, 4:] = 1e4, -1e4
    first = ours(query, key, value, pad_mask=pad_mask)
    assert torch.equal(first, ours(query, other_key, other_value, pad_mask=pad_mask))


def test_dropout_acts_in_training_only(pair):
    _, _, query, key, value = pair
    layer = MultiHeadAttention(hidden_dim=24, num_heads=3, dropout=0.5)
    assert not torch.equal(layer(query, key, value), layer(query, key, value))
    layer.eval()
    assert torch.equal(layer(query, key, value), layer(query, key, value))


@pytest.mark.parametrize("layer", [MultiHeadAttention, MultiScaleDeformableAttention])
def test_heads_must_divide_the_width(layer):
    more = {"num_levels": 1, "num_points": 1} if layer is MultiScaleDeformableAttention else {}
    with pytest.raises(ValueError, match="5 heads and hidden_dim 24"):
        layer(hidden_dim=24, num_heads=5, **more)


def test_deformable_attention_starts_with_points_in_all_directions():
    layer = MultiScaleDeformableAttention(hidden_dim=16, num_heads=8, num_levels=2, num_points=3)
    offsets = layer.sampling_offsets.bias.view(8, 2, 3, 2)
    diagonal = math.sqrt(0.5)
    circle = [
        (1, 0), (diagonal, diagonal), (0, 1), (-diagonal, diagonal),
        (-1, 0), (-diagonal, -diagonal), (0, -1), (diagonal, -diagonal),
    ]  # fmt: skip
    for head, (x, y) in enumerate(circle):
        largest = max(abs(x), abs(y))
        for point in range(3):
            expected = torch.tensor([x, y]) / largest * (point + 1)
            for level in range(2):
                torch.testing.assert_close(offsets[head, level, point], expected, atol=1e-5, rtol=0)
    for zero in (layer.sampling_offsets.weight, layer.attention_weights.weight):
        assert not zero.any()
    assert not layer.attention_weights.bias.any()
    assert layer.value_proj.weight.std() > 0.1


def test_deformable_attention_of_a_fresh_layer_by_hand():
    """Equal weights, so the output is the mean of the sampled, projected values."""
    torch.manual_seed(0)
    layer = MultiScaleDeformableAttention(hidden_dim=4, num_heads=1, num_levels=1, num_points=2)
    value = torch.randn(1, 12, 4)  # a map of 3 x 4
    # Centre of pixel (row 1, column 0); the points lie one and two pixels to the right.
    reference = torch.tensor([[0.5 / 4, 1.5 / 3]]).view(1, 1, 1, 2)
    found = layer(torch.randn(1, 1, 4), reference, value, [(3, 4)])
    mean = layer.value_proj(value)[0, [5, 6]].mean(dim=0)
    torch.testing.assert_close(found[0, 0], layer.output_proj(mean))


def test_deformable_attention_sees_padding_as_zero():
    torch.manual_seed(0)
    layer = MultiScaleDeformableAttention(hidden_dim=8, num_heads=2, num_levels=1, num_points=4)
    nn.init.normal_(layer.value_proj.bias)
    value = torch.randn(1, 12, 8)
    pad_mask = torch.zeros(1, 12, dtype=torch.bool)
    pad_mask[:, [3, 7, 11]] = True  # the last column
    query, reference = torch.randn(1, 5, 8), torch.rand(1, 5, 1, 2)
    first = layer(query, reference, value, [(3, 4)], pad_mask)
    other = value.clone()
    other[pad_mask] = 1e4
    assert torch.equal(first, layer(query, reference, other, [(3, 4)], pad_mask))
    # Zero after the projection: its bias does not come in through the padding.
    assert not torch.allclose(
        first, layer(query, reference, value * ~pad_mask[..., None], [(3, 4)])
    )


def test_offsets_stay_fp32_under_autocast():
    torch.manual_seed(0)
    layer = MultiScaleDeformableAttention(hidden_dim=8, num_heads=2, num_levels=1, num_points=4)
    nn.init.normal_(layer.sampling_offsets.weight, std=3.0)
    value, query, reference = torch.randn(1, 900, 8), torch.randn(1, 50, 8), torch.rand(1, 50, 1, 2)
    exact = layer(query, reference, value, [(30, 30)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = layer(query, reference, value, [(30, 30)])
    offsets = layer.sampling_offsets(query)
    shifted = (offsets.bfloat16().float() - offsets).abs().max()
    assert shifted > 0.02  # what bf16 offsets would cost, in pixels
    assert (low - exact).abs().max() < 0.03 * exact.abs().max()
