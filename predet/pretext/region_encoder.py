"""What a fixed network says of a region: the targets of DETReg's object embedding (section 5).

The paper names SwAV's descriptor; its code takes the spatial mean of the third stage's map
(`layer2` of a ResNet-50, 512 channels), not normalised. Here stage, pooling and normalisation can
be chosen.

Legend: M patches, S side of a patch in pixels, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from predet.modeling.images import PIXEL_MEAN, PIXEL_STD, ImageNormalizer

POOLINGS = ("mean", "max")
NORMALIZATIONS = ("none", "l2")


class RegionEncoder(nn.Module):
    """A backbone that is never trained and always in evaluation mode; patches in, vectors out.

    Its weights are those of the backbone: of a published file, or of a checkpoint of image-domain
    pre-training. Random weights describe no regions, so they are refused unless asked for.

    Args:
        backbone: its last map is used; `out_stages` says of which stage that is.
        pooling: "mean" or "max" over the pixels of that map.
        normalize: "none", or "l2" for vectors of length 1.
        allow_random: accept a backbone with random weights: for controls and tests.
        pixel_mean: RGB means in 0..255.
        pixel_std: RGB standard deviations in 0..255.

    Raises:
        ValueError: the backbone has random weights, or does not tell.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        pooling: Literal["mean", "max"] = "mean",
        normalize: Literal["none", "l2"] = "none",
        allow_random: bool = False,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {POOLINGS}, got {pooling!r}")
        if normalize not in NORMALIZATIONS:
            raise ValueError(f"normalize must be one of {NORMALIZATIONS}, got {normalize!r}")
        if not (allow_random or getattr(backbone, "pretrained", False)):
            raise ValueError(
                f"the region encoder's {type(backbone).__name__} has random weights, which tell "
                "nothing of a region. Set its `weights` to a file or to a checkpoint of image-"
                "domain pre-training; allow_random=True is for controls"
            )
        self.pooling = pooling
        self.normalize = normalize
        self.num_features = int(backbone.channels[-1])
        self.backbone = backbone.requires_grad_(False)
        self.normalizer = ImageNormalizer(pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.eval()

    @torch.no_grad()
    def forward(self, patches: Tensor) -> Tensor:
        """(M, 3, S, S) RGB in 0..255 -> (M, F) fp32."""
        if len(patches) == 0:
            return self.normalizer.pixel_mean.new_zeros(0, self.num_features)
        maps = self.backbone(self.normalizer.normalize(patches))[-1].float()
        features = maps.mean(dim=(2, 3)) if self.pooling == "mean" else maps.amax(dim=(2, 3))
        return F.normalize(features, dim=-1) if self.normalize == "l2" else features

    def train(self, mode: bool = True) -> RegionEncoder:
        """Evaluation mode, whatever is asked for."""
        return super().train(False)
