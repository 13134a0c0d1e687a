"""Contrast of whole views and of places in them: the light method.

Two views of each image. The pooled features of a view should be told from those of all other
images of the batch by being like those of the same image's other view; and so should the features
of a place, among the places of all images. The idea is that of DenseCL (Wang et al., arXiv
2011.09157). What is different, and why, is in the README of this folder:

- no momentum copy of the backbone and no queue: negatives are the rest of the batch;
- places are matched by where they lie in the image, not by how like their features are;
- batch normalisation before and inside the heads, over the batch of all processes.

Legend: B images of all processes, K places an image, D channels that are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from predet.modeling.images import PIXEL_MEAN, PIXEL_STD
from predet.projects.image_domain.gather import gather_batch
from predet.projects.image_domain.heads import projection_head
from predet.projects.image_domain.modeling import ImageDomain
from predet.projects.image_domain.views import EncodedView, cells, match_cells, pool, take


class DenseContrast(ImageDomain):
    """Meta-architecture of contrastive pre-training on two views.

    Args:
        backbone: as in `ImageDomain`.
        level: which of the backbone's maps the places are compared on. -2 of stages 3, 4, 5 has
            stride 16; on the last map a small view has hardly any places.
        hidden_dim: width of both heads.
        projection_dim: D.
        num_cells: K; those whose partners lie nearest.
        max_distance: between the centres of partners, in sides of a cell; what lies farther apart
            does not count.
        temperature: of the softmax over cosines.
        weights: of `loss_global` and `loss_local`.
        pixel_mean, pixel_std, check_period: as in `ImageDomain`.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        level: int = -2,
        hidden_dim: int = 512,
        projection_dim: int = 128,
        num_cells: int = 16,
        max_distance: float = 0.75,
        temperature: float = 0.2,
        weights: Mapping[str, float],
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        check_period: int = 50,
    ) -> None:
        super().__init__(
            backbone=backbone,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            check_period=check_period,
        )
        channels = tuple(backbone.channels)
        if not -len(channels) <= level < len(channels):
            raise ValueError(
                f"level must name one of the backbone's {len(channels)} maps, got {level}"
            )
        if temperature <= 0 or num_cells < 1:
            raise ValueError(
                f"expected temperature > 0 and num_cells >= 1, got {temperature} and {num_cells}"
            )
        self.level, self.num_cells = level, num_cells
        self.max_distance, self.temperature = max_distance, temperature
        self.weights = dict(weights)
        self.global_head = projection_head(sum(channels), hidden_dim, projection_dim)
        self.local_head = projection_head(channels[level], hidden_dim, projection_dim)

    def compare(self, views: Sequence[EncodedView]) -> dict[str, Tensor]:
        """`loss_global` and `loss_local` of two views of one size.

        Raises:
            ValueError: there are not two views of one size, or fewer than two images.
        """
        if len(views) != 2 or views[0].size != views[1].size:
            raise ValueError(
                "DenseContrast compares two views of one size, got views of "
                f"{[view.size for view in views]}"
            )
        pooled = [gather_batch(pool(view.maps)) for view in views]  # (B, sum of channels)
        if len(pooled[0]) < 2:
            raise ValueError(
                "contrast needs at least 2 images in a batch of all processes, got 1: raise "
                "dataloader.train.total_batch_size or lower train.accumulation_steps"
            )
        images = self.global_head(torch.cat(pooled)).chunk(2)
        places, near = self._matched_places(*views)
        losses = {
            "loss_global": contrast(*images, temperature=self.temperature),
            "loss_local": contrast(*places, temperature=self.temperature, valid=near),
        }
        return {name: self.weights[name] * loss for name, loss in losses.items()}

    def _matched_places(
        self, first: EncodedView, second: EncodedView
    ) -> tuple[Sequence[Tensor], Tensor]:
        """Embeddings of places and of their partners, 2 x (B * K, D), and which count (B * K,)."""
        here, there = (cells(view.maps[self.level]) for view in (first, second))
        shape = first.maps[self.level].shape[2:]
        matches = match_cells(
            first, second, shape, num_cells=self.num_cells, max_distance=self.max_distance
        )
        chosen = torch.stack([take(here, matches.first), take(there, matches.second)], dim=1)
        chosen = gather_batch(chosen).transpose(0, 1)  # (2, B, K, C)
        embedded = self.local_head(chosen.flatten(0, 2))
        return embedded.chunk(2), gather_batch(matches.near).flatten()


def contrast(
    first: Tensor, second: Tensor, *, temperature: float, valid: Tensor | None = None
) -> Tensor:
    """InfoNCE in both directions: row i of one side belongs to row i of the other.

    Args:
        first, second: (N, D), of any length.
        temperature: divides the cosines.
        valid: (N,) bool; rows that are not valid neither count nor serve as negatives. None: all.

    Returns:
        The mean over valid rows and both directions; 0 where no row is valid.
    """
    with torch.autocast(first.device.type, enabled=False):
        first, second = (F.normalize(side.float(), dim=1) for side in (first, second))
        count = torch.arange(len(first), device=first.device)
        if valid is None:
            valid = torch.ones_like(count, dtype=torch.bool)
        left_out = ~valid & (count[:, None] != count)  # (N, N): columns of the others
        cosines = first @ second.T
        both_ways = [
            F.cross_entropy(
                (direction / temperature).masked_fill(left_out, -torch.inf), count, reduction="none"
            )
            for direction in (cosines, cosines.T)
        ]
        return (sum(both_ways) / 2 * valid).sum() / valid.sum().clamp(min=1)
