"""Features of the boxes of whole images by a frozen backbone: what regions are clustered by.

Legend: N boxes, F channels of the map that is read.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from predet.pretext.region_encoder import RegionEncoder

_BINS = 7  # a side, averaged
_CROPS_AT_ONCE = 64


class RoIAlignFeatures(nn.Module):
    """Means of 7 x 7 samples of a map of the whole image (RoIAlign): one pass an image.

    Args:
        encoder: its backbone and normalisation are used.
        level: which of the backbone's maps; -1 is the last.
        short_side, max_size: of the resized image, in pixels.
    """

    def __init__(
        self,
        *,
        encoder: RegionEncoder,
        level: int = -1,
        short_side: int = 640,
        max_size: int = 1333,
    ) -> None:
        super().__init__()
        _check_level(encoder, level)
        self.encoder = encoder
        self.level, self.short_side, self.max_size = level, short_side, max_size

    @torch.no_grad()
    def forward(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB and (N, 4) xyxy in its frame -> (N, F) float32."""
        height, width = image.shape[:2]
        scale = min(self.short_side / min(height, width), self.max_size / max(height, width))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        pixels = F.interpolate(
            _as_tensor(self.encoder, image), size, mode="bilinear", antialias=True
        )
        level = self.encoder.backbone(self.encoder.normalizer.normalize(pixels))[self.level].float()
        # From pixels of the file to places of the map.
        stride = self.encoder.backbone.strides[self.level]
        factor = torch.tensor([size[1] / width, size[0] / height] * 2) / stride
        places = torch.from_numpy(np.asarray(boxes, np.float32)) * factor
        pooled = roi_align(
            level, [places.to(level.device)], output_size=_BINS, sampling_ratio=2, aligned=True
        )
        return pooled.mean(dim=(2, 3)).cpu().numpy()


class CropFeatures(nn.Module):
    """Means of a map of each box, cut out as a square: finer than RoIAlign, a pass for each box.

    Args:
        encoder: as above.
        level: as above.
        size: side of the crops in pixels; their shape is not kept.
    """

    def __init__(self, *, encoder: RegionEncoder, level: int = -1, size: int = 128) -> None:
        super().__init__()
        _check_level(encoder, level)
        self.encoder = encoder
        self.level, self.size = level, size

    @torch.no_grad()
    def forward(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB and (N, 4) xyxy in its frame -> (N, F) float32."""
        pixels = _as_tensor(self.encoder, image)
        boxes_on_device = torch.from_numpy(np.asarray(boxes, np.float32)).to(pixels.device)
        features = [np.zeros((0, self.encoder.backbone.channels[self.level]), np.float32)]
        for some in boxes_on_device.split(_CROPS_AT_ONCE):
            # Where a crop shrinks, it takes as many samples as pixels: no aliasing.
            crops = roi_align(pixels, [some], output_size=self.size, aligned=True)
            maps = self.encoder.backbone(self.encoder.normalizer.normalize(crops))[self.level]
            features.append(maps.float().mean(dim=(2, 3)).cpu().numpy())
        return np.concatenate(features)


def _as_tensor(encoder: RegionEncoder, image: np.ndarray) -> Tensor:
    """(1, 3, H, W) float in 0..255 on the encoder's device."""
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    return pixels.to(encoder.normalizer.pixel_mean.device).float()


def _check_level(encoder: RegionEncoder, level: int) -> None:
    maps = len(encoder.backbone.channels)
    if not -maps <= level < maps:
        raise ValueError(f"level must name one of the backbone's {maps} maps, got {level}")
