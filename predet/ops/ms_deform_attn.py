"""Multi-scale deformable attention (Deformable DETR, section 4.1), after its projections.

Each query looks at P points on each of L feature maps instead of at every pixel. Two entry points:

- `ms_deform_attn`: sampling locations and attention weights are given.
- `ms_deform_attn_fused`: starts from what the linear layers give (raw offsets and logits), so that
  the locations and the softmax need not be written to memory. The models call this one.

Frames: a location (x, y) in [0, 1] spans the whole feature map, so pixel i of a row of W pixels is
centred at (i + 0.5) / W; samples are bilinear and everything outside the map is zero.

Precision: locations, the softmax and the sum are computed in at least fp32, also under autocast,
which casts the value and the weights or logits only: a sampling location in bf16 is wrong by up to
a third of a pixel. The output has the dtype of the value.

Both run the kernels of csrc/ms_deform_attn (registered in ms_deform_attn_native.py), and the
PyTorch references below where those are not built or do not know the device or dtype.

Legend: B batch, S pixels of all levels, H heads, C channels of a head, Q queries, L levels,
P points of a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from predet.ops import extension
from predet.ops.ms_deform_attn_native import autocast_values, ms_deform_attn_native

SpatialShapes = Sequence[tuple[int, int]]


def ms_deform_attn(
    value: Tensor, spatial_shapes: SpatialShapes, locations: Tensor, weights: Tensor
) -> Tensor:
    """Sample `value` at `locations` and mix the samples by `weights`.

    Args:
        value: (B, S, H, C), the levels one after the other, each flattened row by row.
        spatial_shapes: L pairs (height, width) with sum(height * width) == S.
        locations: (B, Q, H, L, P, 2), (x, y) with [0, 1] spanning the padded map of each level.
        weights: (B, Q, H, L, P); normally softmaxed over L * P, which is not checked.

    Returns:
        (B, Q, H * C) in the dtype of `value`.

    Raises:
        ValueError: shapes do not fit together.
    """
    _check(value, spatial_shapes, locations, weights)
    value, weights = autocast_values(value, weights)
    if extension.supports("ms_deform_attn", value.device, value.dtype):
        return ms_deform_attn_native(value, spatial_shapes, None, locations, weights)
    return ms_deform_attn_reference(value, spatial_shapes, locations, weights)


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """`ms_deform_attn` with the locations and the softmax computed inside.

    Args:
        value: (B, S, H, C), as for `ms_deform_attn`.
        spatial_shapes: L pairs (height, width) with sum(height * width) == S.
        reference_points: (B, Q, L, 2) points (x, y), or (B, Q, L, 4) boxes (cx, cy, w, h), in the
            frame of each level's padded map.
        offsets: (B, Q, H, L, P, 2), in pixels of the level around a reference point; around a
            reference box in units of its half size divided by P.
        logits: (B, Q, H, L, P), softmaxed over all L * P points of a head together.

    Returns:
        (B, Q, H * C) in the dtype of `value`.

    Raises:
        ValueError: shapes do not fit together.
    """
    _check(value, spatial_shapes, offsets, logits)
    _check_reference_points(reference_points, offsets)
    value, logits = autocast_values(value, logits)
    if extension.supports("ms_deform_attn", value.device, value.dtype):
        return ms_deform_attn_native(value, spatial_shapes, reference_points, offsets, logits)
    return ms_deform_attn_fused_reference(value, spatial_shapes, reference_points, offsets, logits)


def ms_deform_attn_reference(
    value: Tensor, spatial_shapes: SpatialShapes, locations: Tensor, weights: Tensor
) -> Tensor:
    """`ms_deform_attn` in plain PyTorch; differentiable in value, locations and weights."""
    B, S, H, C = value.shape
    _, Q, _, L, P, _ = locations.shape
    dtype = torch.promote_types(locations.dtype, torch.float32)
    with torch.autocast(value.device.type, enabled=False):
        # Heads are independent of one another, so they join the batch axis of the sampler.
        maps = value.to(dtype).permute(0, 2, 3, 1).reshape(B * H, C, S)
        # grid_sample spans the map by [-1, 1].
        grid = (2 * locations.to(dtype) - 1).transpose(1, 2).flatten(0, 1)  # (B*H, Q, L, P, 2)
        mix = weights.to(dtype).transpose(1, 2).reshape(B * H, 1, Q, L, P)
        output = maps.new_zeros(B * H, C, Q)
        if output.numel() == 0:
            return value.new_zeros(B, Q, H * C) + 0 * (value.sum() + grid.sum() + mix.sum())
        sizes = [height * width for height, width in spatial_shapes]
        for level, flat in enumerate(maps.split(sizes, dim=2)):
            sampled = F.grid_sample(
                flat.unflatten(2, tuple(spatial_shapes[level])),
                grid[:, :, level],
                mode="bilinear",
                padding_mode="zeros",
                align_corners=False,
            )  # (B*H, C, Q, P)
            output = output + (sampled * mix[:, :, :, level]).sum(-1)
    return output.view(B, H * C, Q).transpose(1, 2).to(value.dtype)


def ms_deform_attn_fused_reference(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """`ms_deform_attn_fused` in plain PyTorch; differentiable in everything but the shapes."""
    dtype = torch.promote_types(offsets.dtype, torch.float32)
    with torch.autocast(value.device.type, enabled=False):
        locations = sampling_locations(
            reference_points.to(dtype), offsets.to(dtype), spatial_shapes
        )
        weights = logits.to(dtype).flatten(3).softmax(-1).unflatten(3, logits.shape[3:])
    return ms_deform_attn_reference(value, spatial_shapes, locations, weights)


def sampling_locations(
    reference_points: Tensor, offsets: Tensor, spatial_shapes: SpatialShapes
) -> Tensor:
    """Where `ms_deform_attn_fused` samples.

    Returns:
        (B, Q, H, L, P, 2), (x, y) in the frame of `reference_points`. A point moves by whole
        pixels of its level; a box spreads its points over its own extent, so that offset P reaches
        its border (iterative bounding box refinement, appendix of Deformable DETR).
    """
    anchors = reference_points[:, :, None, :, None]  # (B, Q, 1, L, 1, 2|4)
    if reference_points.shape[-1] == 2:
        width_height = [(width, height) for height, width in spatial_shapes]
        scale = 1 / offsets.new_tensor(width_height)[:, None]  # (L, 1, 2)
    else:
        scale = anchors[..., 2:] * (0.5 / offsets.shape[4])
    return anchors[..., :2] + offsets * scale


def _check(value: Tensor, spatial_shapes: SpatialShapes, points: Tensor, per_point: Tensor) -> None:
    if value.ndim != 4:
        raise ValueError(f"ms_deform_attn: value must be (B, S, H, C), got {tuple(value.shape)}")
    B, S, H, _ = value.shape
    pixels = sum(height * width for height, width in spatial_shapes)
    if pixels != S:
        raise ValueError(
            f"ms_deform_attn: value has {S} pixels, but levels {list(spatial_shapes)} have {pixels}"
        )
    fits = points.ndim == 6 and points.shape[0] == B and points.shape[2] == H
    if not fits or points.shape[3] != len(spatial_shapes) or points.shape[5] != 2:
        raise ValueError(
            "ms_deform_attn: locations or offsets must be (B, Q, H, L, P, 2) = "
            f"({B}, Q, {H}, {len(spatial_shapes)}, P, 2), got {tuple(points.shape)}"
        )
    if per_point.shape != points.shape[:5]:
        raise ValueError(
            f"ms_deform_attn: weights or logits must be {tuple(points.shape[:5])} as the points, "
            f"got {tuple(per_point.shape)}"
        )


def _check_reference_points(reference_points: Tensor, offsets: Tensor) -> None:
    B, Q, _, L = offsets.shape[:4]
    if reference_points.shape not in ((B, Q, L, 2), (B, Q, L, 4)):
        raise ValueError(
            f"ms_deform_attn: reference_points must be (B, Q, L, 2 or 4) = ({B}, {Q}, {L}, 2 or 4),"
            f" got {tuple(reference_points.shape)}"
        )
