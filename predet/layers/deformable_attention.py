"""Multi-scale deformable attention with its projections (Deformable DETR, section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from predet.ops.ms_deform_attn import ms_deform_attn_fused


class MultiScaleDeformableAttention(nn.Module):
    """Each query mixes P sampled values from each of L feature maps, in each of H heads.

    A fresh module samples the same points for every query: head h looks in the direction
    2 * pi * h / H, at P distances, with equal weights.

    Args:
        hidden_dim: channels.
        num_heads: heads; must divide hidden_dim.
        num_levels: feature maps.
        num_points: samples of a head on each map.
    """

    def __init__(
        self, *, hidden_dim: int, num_heads: int, num_levels: int, num_points: int
    ) -> None:
        super().__init__()
        if hidden_dim % num_heads != 0:
            raise ValueError(
                f"MultiScaleDeformableAttention: num_heads must divide hidden_dim, got {num_heads} "
                f"heads and hidden_dim {hidden_dim}"
            )
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(hidden_dim, samples * 2)
        self.attention_weights = nn.Linear(hidden_dim, samples)
        self.value_proj = nn.Linear(hidden_dim, hidden_dim)
        self.output_proj = nn.Linear(hidden_dim, hidden_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as the paper says; to be called again after a blanket initialisation."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        # Onto the border of the square, so that the points fall on pixels.
        direction = direction / direction.abs().amax(dim=-1, keepdim=True)  # (H, 2)
        distance = torch.arange(1, self.num_points + 1)[:, None]
        offsets = (direction[:, None, None, :] * distance).expand(-1, self.num_levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        pad_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from `query` to the feature maps in `value`.

        Args:
            query: (B, Q, D), positions included.
            reference_points: (B, Q, L, 2) or (B, Q, L, 4), see `ms_deform_attn_fused`; fp32.
            value: (B, S, D), the maps flattened one after the other.
            spatial_shapes: (height, width) of each map.
            pad_mask: (B, S) bool, True = padding, which is sampled as zero.

        Returns:
            (B, Q, D).
        """
        B, Q, _ = query.shape
        H, L, P = self.num_heads, self.num_levels, self.num_points
        projected = self.value_proj(value)
        if pad_mask is not None and _may_mask(pad_mask):
            projected.masked_fill_(pad_mask[..., None], 0)
        # bf16 offsets would move samples by a good part of a pixel.
        with torch.autocast(query.device.type, enabled=False):
            wide = query.to(self.sampling_offsets.weight.dtype)
            offsets = self.sampling_offsets(wide).view(B, Q, H, L, P, 2)
        logits = self.attention_weights(query).view(B, Q, H, L, P)
        mixed = ms_deform_attn_fused(
            projected.unflatten(2, (H, -1)), spatial_shapes, reference_points, offsets, logits
        )
        return self.output_proj(mixed)


def _may_mask(pad_mask: Tensor) -> bool:
    """False where nothing is padded, as far as that is known without waiting for a device."""
    known = pad_mask.device.type == "cpu" and not torch.compiler.is_compiling()
    return not known or bool(pad_mask.any())
