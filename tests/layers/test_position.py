"""Sine encodings against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from predet.layers.position import SinePositionEncoding, sine_embedding


def pad_mask(batch_sizes, height, width):
    mask = torch.ones(len(batch_sizes), height, width, dtype=torch.bool)
    for index, (h, w) in enumerate(batch_sizes):
        mask[index, :h, :w] = False
    return mask


def by_hand(count: int, total: int, offset: float, channel: int, half: int) -> float:
    """Channel of one axis for the `count`-th of `total` valid pixels."""
    position = (count + offset) / (total + 1e-6) * 2 * math.pi
    angle = position / 10_000 ** (2 * (channel // 2) / half)
    return math.cos(angle) if channel % 2 else math.sin(angle)


@pytest.mark.parametrize("offset", [0.0, -0.5], ids=["detr", "deformable"])
def test_encoding_by_hand(offset):
    # Padded to 6 x 9; the image itself is 4 x 5.
    encoding = SinePositionEncoding(hidden_dim=16, offset=offset)(pad_mask([(4, 5)], 6, 9))
    assert encoding.shape == (1, 16, 6, 9)
    for y, x in [(0, 0), (3, 4), (2, 1)]:
        for channel in range(8):
            expected_y = by_hand(y + 1, 4, offset, channel, 8)
            expected_x = by_hand(x + 1, 5, offset, channel, 8)
            assert encoding[0, channel, y, x].item() == pytest.approx(expected_y, abs=1e-5)
            assert encoding[0, 8 + channel, y, x].item() == pytest.approx(expected_x, abs=1e-5)


def test_the_two_variants_differ():
    mask = pad_mask([(4, 5)], 4, 5)
    detr = SinePositionEncoding(hidden_dim=16)(mask)
    deformable = SinePositionEncoding(hidden_dim=16, offset=-0.5)(mask)
    assert (detr - deformable).abs().max() > 0.1


@pytest.mark.parametrize("offset", [0.0, -0.5])
def test_padding_does_not_change_the_encoding_of_an_image(offset):
    encode = SinePositionEncoding(hidden_dim=16, offset=offset)
    alone = encode(pad_mask([(4, 5)], 4, 5))
    padded = encode(pad_mask([(4, 5), (8, 8)], 8, 8))
    assert torch.equal(padded[:1, :, :4, :5], alone)
    assert padded.isfinite().all()


def test_sine_embedding_of_a_box():
    boxes = torch.tensor([0.25, 0.5])
    embedded = sine_embedding(boxes, 4)
    slow = 2 * math.pi / 10_000**0.5
    expected = [
        [1.0, 0.0, math.sin(0.25 * slow), math.cos(0.25 * slow)],
        [0.0, -1.0, math.sin(0.5 * slow), math.cos(0.5 * slow)],
    ]
    torch.testing.assert_close(embedded, torch.tensor(expected), atol=1e-6, rtol=0)


def test_temperature_is_the_longest_wavelength():
    x = torch.tensor([0.3])
    cold, hot = (sine_embedding(x, 8, temperature=t) for t in (20.0, 10_000.0))
    torch.testing.assert_close(cold[:, :2], hot[:, :2])  # the fastest wave has none
    assert (cold[:, 6:] - hot[:, 6:]).abs().max() > 0.01


def test_width_must_divide_by_four():
    with pytest.raises(ValueError, match=r"multiple of 4.*got 18"):
        SinePositionEncoding(hidden_dim=18)
