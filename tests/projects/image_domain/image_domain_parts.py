"""A small backbone, views of drawn scenes, and the method: for tests and their processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from predet.data.mapper import to_chw_tensor
from predet.data.scenes import draw_scene
from predet.data.views import ColorJitter, RandomView
from predet.layers.norm import group_norm
from predet.projects.image_domain import DenseContrast, SwAV

WEIGHTS = {"loss_global": 1.0, "loss_local": 1.0}


class SmallBackbone(nn.Module):
    """Two maps of strides 4 and 8."""

    channels, strides = (32, 64), (4, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 32, 7), group_norm(32), nn.ReLU())
        self.stage = nn.Sequential(conv(32, 64, 3), group_norm(64), nn.ReLU())

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        first = self.stem(pixels)
        return first, self.stage(first)


def conv(channels: int, out: int, kernel: int) -> nn.Conv2d:
    """Halves the size of the map, or for the large kernel quarters it. The norm has the bias."""
    return nn.Conv2d(channels, out, kernel, kernel // 2 + 1, kernel // 2, bias=False)


class Constant(SmallBackbone):
    """A backbone that has collapsed: the same features for every image, on trained parameters."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return tuple(m.mean(dim=(0, 2, 3), keepdim=True) + 0 * m for m in super().forward(pixels))


def make_method(*, backbone: nn.Module | None = None, **options: Any) -> DenseContrast:
    torch.manual_seed(0)
    options = {"hidden_dim": 64, "projection_dim": 16, "weights": WEIGHTS, **options}
    return DenseContrast(backbone=backbone or SmallBackbone(), **options).train()


def make_swav(*, backbone: nn.Module | None = None, **options: Any) -> SwAV:
    torch.manual_seed(0)
    options = {"num_prototypes": 6, "hidden_dim": 64, "projection_dim": 16, **options}
    return SwAV(backbone=backbone or SmallBackbone(), **options).train()


def make_batch(count: int, *, seed: int = 0, sizes: tuple[int, ...] = (64, 64)) -> list[dict]:
    """Views of `count` scenes."""
    rng = np.random.default_rng(seed)
    batch = []
    for _ in range(count):
        image = draw_scene(rng, height=80, width=96).image
        views = []
        for size in sizes:
            view = RandomView(size=size, photometric=[ColorJitter()])(image, rng)
            views.append(
                {"image": to_chw_tensor(view.image), "to_view": torch.from_numpy(view.to_view)}
            )
        batch.append({"image": views[0]["image"], "views": views})
    return batch
