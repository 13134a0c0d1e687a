"""Encoded views, and which of their places show the same part of the image.

Legend: B images, C channels, N = H * W cells of a feature map, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class EncodedView(NamedTuple):
    """One view of every image of a batch."""

    maps: tuple[Tensor, ...]  # (B, C_i, H_i, W_i) each, finest first
    to_view: Tensor  # (B, 2, 3): (x, y, 1) of the original image -> (x, y) of the view, in pixels
    size: tuple[int, int]  # height and width of the view in pixels


class Matches(NamedTuple):
    """Cells of a first view with their partners in a second one. K cells an image."""

    first: Tensor  # (B, K) cell of the first view
    second: Tensor  # (B, K) the cell of the second view that lies nearest
    near: Tensor  # (B, K) bool: whether the two are near enough to show the same


def pool(maps: Sequence[Tensor]) -> Tensor:
    """Means of feature maps over their places, one after the other. -> (B, sum of C_i)"""
    return torch.cat([m.mean(dim=(2, 3)) for m in maps], dim=1)


def cells(feature_map: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, N, C)"""
    return feature_map.flatten(2).transpose(1, 2)


def cell_centers(view: EncodedView, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Where the cells of a feature map of `shape` (H, W) lie in the original images.

    Returns:
        Centres (B, N, 2) as (x, y), and width and height (B, 1, 2) of a cell, in pixels of the
        original image.
    """
    (height, width), device = shape, view.to_view.device
    step = torch.tensor([view.size[1] / width, view.size[0] / height], device=device)
    y, x = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    in_view = (torch.stack([x, y], dim=-1).reshape(1, -1, 2) + 0.5) * step
    scale = view.to_view[:, [0, 1], [0, 1]][:, None]  # negative where the view is mirrored
    return (in_view - view.to_view[:, None, :, 2]) / scale, step / scale.abs()


def match_cells(
    first: EncodedView,
    second: EncodedView,
    shape: tuple[int, int],
    *,
    num_cells: int,
    max_distance: float,
) -> Matches:
    """Match cells by the place in the image that they were computed from.

    Args:
        shape: (H, W) of the feature maps of both views.
        num_cells: K: of each image the cells whose partners lie nearest; all if there are fewer.
        max_distance: between the centres of cells that count as near, in sides of the larger of
            the two cells.
    """
    (here, cell_here), (there, cell_there) = (cell_centers(v, shape) for v in (first, second))
    side = torch.maximum(cell_here, cell_there)  # (B, 1, 2)
    # Not by a matrix product, which would lose the small distances among large coordinates.
    distance = torch.cdist(
        here / side, there / side, compute_mode="donot_use_mm_for_euclid_dist"
    )  # (B, N, N)
    nearest, partner = distance.min(dim=2)
    chosen = nearest.topk(min(num_cells, nearest.shape[1]), dim=1, largest=False)
    return Matches(chosen.indices, partner.gather(1, chosen.indices), chosen.values <= max_distance)


def take(all_cells: Tensor, index: Tensor) -> Tensor:
    """Pick cells: (B, N, C) by (B, K) -> (B, K, C)"""
    return all_cells.gather(1, index[..., None].expand(-1, -1, all_cells.shape[-1]))
