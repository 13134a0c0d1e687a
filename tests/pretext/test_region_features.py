"""Features of boxes: RoIAlign and crops of planted pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from predet.modeling.backbone import ResNet
from predet.pretext.region_encoder import RegionEncoder
from predet.pretext.region_features import CropFeatures, RoIAlignFeatures


class Means(nn.Module):
    """Maps of stride 4 and 8: the means of the pixels under each place."""

    channels = (3, 3)
    strides = (4, 8)
    pretrained = True

    def forward(self, pixels):
        return tuple(F.avg_pool2d(pixels, stride) for stride in self.strides)


def encoder(**options) -> RegionEncoder:
    return RegionEncoder(backbone=Means(), pixel_mean=(0, 0, 0), pixel_std=(1, 1, 1), **options)


def picture() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three flat squares on another ground, their boxes and colours."""
    image = np.full((96, 160, 3), 20, np.uint8)
    boxes = np.array([[8, 8, 40, 40], [64, 16, 112, 80], [120, 40, 152, 88]], np.float32)
    colors = np.array([[200, 30, 60], [10, 180, 90], [250, 250, 0]], np.float32)
    for (x0, y0, x1, y1), color in zip(boxes.astype(int), colors, strict=True):
        image[y0:y1, x0:x1] = color
    return image, boxes, colors


@pytest.mark.parametrize("short_side", [96, 192, 144])
@pytest.mark.parametrize("level", [0, -1])
def test_roi_features_are_those_of_the_box_at_any_scale(short_side: int, level: int) -> None:
    image, boxes, colors = picture()
    inner = boxes + np.array([8, 8, -8, -8], np.float32)  # away from the borders
    describe = RoIAlignFeatures(encoder=encoder(), level=level, short_side=short_side)
    np.testing.assert_allclose(describe(image, inner), colors, atol=2.5)
    # A wrong scale would look elsewhere.
    assert np.abs(describe(image, inner * 0.8) - colors).max() > 20


def test_long_images_are_kept_within_the_largest_size() -> None:
    image, boxes, colors = picture()
    sizes = []
    describe = RoIAlignFeatures(encoder=encoder(), short_side=300, max_size=240)
    describe.encoder.backbone.register_forward_pre_hook(
        lambda module, arguments: sizes.append(tuple(arguments[0].shape[2:]))
    )
    found = describe(image, boxes + np.array([8, 8, -8, -8], np.float32))
    assert sizes == [(144, 240)]
    np.testing.assert_allclose(found, colors, atol=2.5)


def test_crops_hold_the_box_and_nothing_else() -> None:
    image, boxes, colors = picture()
    describe = CropFeatures(encoder=encoder(), size=16)
    inner = boxes + np.array([1, 1, -1, -1], np.float32)
    np.testing.assert_allclose(describe(image, inner), colors, atol=0.5)
    many = describe(image, np.repeat(inner, 30, axis=0))  # more than are looked at together
    np.testing.assert_allclose(many, np.repeat(colors, 30, axis=0), atol=0.5)


@pytest.mark.parametrize(
    "describe",
    [
        RoIAlignFeatures(encoder=encoder(), level=0, short_side=96),
        RoIAlignFeatures(encoder=encoder(), short_side=96),
        CropFeatures(encoder=encoder(), size=16),
    ],
    ids=["fine places", "coarse places", "crops"],
)
def test_features_are_not_half_a_pixel_beside(describe: nn.Module) -> None:
    """Over a ramp of colours the mean of a box is the colour at its centre."""
    y, x = np.mgrid[:96, :160]
    image = np.stack([x, y, 0 * x], axis=2).astype(np.uint8)
    boxes = np.array([[33, 21, 90, 65], [8, 40, 24, 80]], np.float32)
    expected = (boxes[:, :2] + boxes[:, 2:]) / 2 - 0.5  # pixel 0 is centred on 0.5
    np.testing.assert_allclose(describe(image, boxes)[:, :2], expected, atol=0.1)


@pytest.mark.parametrize("kind", [RoIAlignFeatures, CropFeatures])
def test_no_boxes_have_no_features(kind: type) -> None:
    image, _, _ = picture()
    assert kind(encoder=encoder())(image, np.zeros((0, 4), np.float32)).shape == (0, 3)
    with pytest.raises(ValueError, match="one of the backbone's 2 maps, got 2"):
        kind(encoder=encoder(), level=2)


def test_features_are_deterministic_and_need_trained_weights() -> None:
    image, boxes, _ = picture()
    backbone = ResNet(depth=18, weights=None, norm="gn", freeze_at=0, out_stages=[4, 5])
    with pytest.raises(ValueError, match="random weights"):
        RegionEncoder(backbone=backbone)
    frozen = RegionEncoder(backbone=backbone, allow_random=True)
    for describe in (
        RoIAlignFeatures(encoder=frozen, short_side=64),
        CropFeatures(encoder=frozen, size=32),
    ):
        first = describe(image, boxes)
        assert first.shape == (3, 512)
        assert np.array_equal(first, describe(image, boxes))
        assert not torch.is_grad_enabled() or not torch.from_numpy(first).requires_grad
        describe.level = 0
        assert describe(image, boxes).shape == (3, 256)
