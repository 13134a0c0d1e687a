"""From a batch of images of different sizes to one normalised, padded tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Of ImageNet, RGB, 0..255: 255 * (0.485, 0.456, 0.406) and 255 * (0.229, 0.224, 0.225).
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class ImageBatch(NamedTuple):
    """Images padded at the right and at the bottom to a common size."""

    pixels: Tensor  # (B, 3, H, W) fp32, normalised, zero under the padding
    pad_mask: Tensor  # (B, H, W) bool, True = padding
    sizes: tuple[tuple[int, int], ...]  # (height, width) of each image before padding


class ImageNormalizer(nn.Module):
    """Normalises on the device that holds its buffers, then pads with zeros.

    Padding comes after normalisation, so it is the mean colour, as in DETR.

    Args:
        pixel_mean: RGB means in 0..255.
        pixel_std: RGB standard deviations in 0..255.
        size_divisibility: the padded height and width are multiples of this.
    """

    def __init__(
        self,
        *,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        size_divisibility: int = 1,
    ) -> None:
        super().__init__()
        if size_divisibility < 1:
            raise ValueError(f"size_divisibility must be at least 1, got {size_divisibility}")
        self.size_divisibility = size_divisibility
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            buffer = torch.tensor(list(values), dtype=torch.float32)[:, None, None]
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, images: Sequence[Tensor]) -> ImageBatch:
        """(3, H_i, W_i) RGB in 0..255, uint8 or float, on any device -> a batch.

        Raises:
            ValueError: the batch is empty or an image has another shape.
        """
        _check_images(images)
        sizes = tuple((image.shape[1], image.shape[2]) for image in images)
        step = self.size_divisibility
        height, width = (-(-max(side) // step) * step for side in zip(*sizes, strict=True))
        device = self.pixel_mean.device
        pixels = torch.zeros(len(images), 3, height, width, device=device)
        pad_mask = torch.ones(len(images), height, width, dtype=torch.bool, device=device)
        for index, (image, (h, w)) in enumerate(zip(images, sizes, strict=True)):
            pixels[index, :, :h, :w] = self.normalize(image.to(device, non_blocking=True))
            pad_mask[index, :h, :w] = False
        return ImageBatch(pixels, pad_mask, sizes)

    def normalize(self, pixels: Tensor) -> Tensor:
        """(..., 3, H, W) RGB in 0..255, uint8 or float, on the device -> the same, normalised."""
        return (pixels.float() - self.pixel_mean) / self.pixel_std


def resize_pad_mask(pad_mask: Tensor, size: Sequence[int]) -> Tensor:
    """(B, H, W) bool -> (B, *size) bool for a feature map of that size, by nearest pixel."""
    return F.interpolate(pad_mask[None].float(), size=tuple(size))[0].bool()


def _check_images(images: Sequence[Tensor]) -> None:
    if not images:
        raise ValueError("a batch must hold at least one image, got none")
    for index, image in enumerate(images):
        if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise ValueError(
                f"image {index} of the batch must be (3, H, W) RGB and not empty, got "
                f"{tuple(image.shape)}"
            )
