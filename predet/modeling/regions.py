"""Predictions of any detector by the instance that they belong to: what contrast compares.

AlignDet (Li et al., ICCV 2023, section 3.2) compares the predictions that two views make of the
same object. A detector gives them as `Regions`: places in its maps, or regions of interest, with
the feature that its last classification layer reads, and the instance that its own assignment of
targets gives them.

Legend: R regions, C channels, D channels of an embedding, S slots.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Regions(NamedTuple):
    """Sampled predictions of a batch."""

    features: Tensor  # (R, C), what the last classification layer reads
    slots: Tensor  # (R,) int64, which of the S predictions that are made from one feature
    instances: Tensor  # (R,) int64, row among the instances of all images; -1: background
    losses: dict[str, Tensor]  # weighted, of boxes and of what finds them; none of classes


class RegionProjector(nn.Module):
    """Two linear layers in the place of the last classification layer.

    On the places of a map this is AlignDet's 1x1 convolutions, one embedding for each anchor,
    computed where regions were sampled only.

    Args:
        channels: C.
        hidden_dim: between the layers.
        embedding_dim: D.
        slots: S; each has rows of its own in the second layer.
    """

    def __init__(
        self, *, channels: int, hidden_dim: int, embedding_dim: int = 256, slots: int = 1
    ) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, hidden_dim)
        self.output = nn.Linear(hidden_dim, slots * embedding_dim)
        # Features of a fresh dense head are tiny: biases would make all embeddings point one way.
        nn.init.zeros_(self.hidden.bias)
        nn.init.zeros_(self.output.bias)
        self.slots = slots

    def forward(self, features: Tensor, slots: Tensor) -> Tensor:
        """(R, C) and (R,) -> (R, D)."""
        hidden = self.hidden(features).relu()
        every = self.output(hidden).unflatten(1, (self.slots, -1))  # (R, S, D)
        return every[torch.arange(len(slots), device=slots.device), slots]


def sample_regions(assigned: Tensor, *, max_regions: int) -> Tensor:
    """Draw predictions: those of instances first, then background, from torch's generator.

    Args:
        assigned: (N,) instance of each prediction; -1 background, -2 neither.
        max_regions: how many, if there are so many.

    Returns:
        (R,) indices, in ascending order.
    """
    if max_regions is None or max_regions < 1:
        raise ValueError(f"max_regions must be at least 1, got {max_regions}")
    usable = torch.nonzero(assigned >= -1).flatten()
    draws = torch.rand(len(usable), device=assigned.device)
    # Draws lie in [0, 1): background comes after every instance.
    order = (draws + (assigned[usable] == -1).to(draws.dtype)).argsort()
    return usable[order[:max_regions]].sort().values


def take_neighbourhoods(
    maps: list[Tensor], images: Tensor, places: Tensor, *, radius: int
) -> Tensor:
    """Features around places of several maps; zeros beyond the borders, as a convolution has.

    Args:
        maps: (B, C, H, W) each.
        images: (R,) row of each place.
        places: (R,) index among the places of all maps, one map after the other, row by row.
        radius: 0 takes the place alone, 1 the 3 x 3 around it.

    Returns:
        (R, C * (2 * radius + 1) ** 2), in the order of a convolution's weights.
    """
    offsets = torch.arange(2 * radius + 1, device=places.device)
    rows, windows = [], []
    first = 0
    for level in maps:
        height, width = level.shape[2:]
        here = torch.nonzero((places >= first) & (places < first + height * width)).flatten()
        y = torch.div(places[here] - first, width, rounding_mode="floor")[:, None, None]
        x = ((places[here] - first) % width)[:, None, None]
        padded = nn.functional.pad(level, (radius,) * 4)
        window = padded[images[here, None, None], :, y + offsets[:, None], x + offsets]
        rows.append(here)
        windows.append(window.permute(0, 3, 1, 2).flatten(1))  # (r, side, side, C) before
        first += height * width
    return torch.cat(windows)[torch.cat(rows).argsort()]
