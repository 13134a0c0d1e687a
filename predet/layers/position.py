"""Sine position encodings of DETR (appendix A.4) and of Deformable DETR."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SinePositionEncoding(nn.Module):
    """Fixed encoding of where a pixel lies in the valid part of its image.

    The position of a pixel is its 1-based count of valid pixels from the top (left), plus
    `offset`, over the count of the whole column (row): so an image is encoded alike whatever it is
    padded to. Half of the channels encode y, then half encode x; within a half sines and cosines
    alternate.

    Args:
        hidden_dim: channels, a multiple of 4.
        temperature: the longest wavelength is 2 * pi * temperature.
        offset: 0 for DETR; -0.5 for Deformable DETR, which means pixel centres.
    """

    def __init__(
        self, *, hidden_dim: int, temperature: float = 10_000.0, offset: float = 0.0
    ) -> None:
        super().__init__()
        if hidden_dim % 4 != 0:
            raise ValueError(
                "SinePositionEncoding: hidden_dim must be a multiple of 4 (a sine and a cosine "
                f"for each of x and y), got {hidden_dim}"
            )
        self.hidden_dim = hidden_dim
        self.temperature = temperature
        self.offset = offset

    def forward(self, pad_mask: Tensor) -> Tensor:
        """(B, H, W) bool, True = padding -> (B, hidden_dim, H, W) fp32."""
        valid = (~pad_mask).float()
        y, x = valid.cumsum(1), valid.cumsum(2)
        eps = 1e-6
        y = (y + self.offset) / (y[:, -1:, :] + eps)
        x = (x + self.offset) / (x[:, :, -1:] + eps)
        half = self.hidden_dim // 2
        encoded = [sine_embedding(axis, half, self.temperature) for axis in (y, x)]
        return torch.cat(encoded, dim=-1).permute(0, 3, 1, 2)


def sine_embedding(positions: Tensor, dim: int, temperature: float = 10_000.0) -> Tensor:
    """Encode numbers in [0, 1] by alternating sines and cosines: (...) -> (..., dim) fp32.

    Channels 2i and 2i + 1 are the sine and the cosine of 2 * pi * x / temperature^(2i / dim).
    """
    exponent = torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device) / dim
    angle = positions.float()[..., None] * (2 * math.pi) / temperature**exponent  # (..., dim / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)
