"""Convolutions of stride 2 over maps that may be a single column, as small images have them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


def of_any_width(convolution: nn.Conv2d) -> nn.Conv2d:
    """A 3x3 convolution of stride 2 and padding 1 that sees a single column as two.

    The second is the column of zeros that the padding adds anyway, so outputs stay what they are.
    But the gradient of 16-bit weights stays right, too: over one column that of oneDNN (3.13, in
    torch 2.15) is made of whatever lies in memory, and often NaN.
    """
    assert (convolution.kernel_size, convolution.padding) == ((3, 3), (1, 1))
    convolution.register_forward_pre_hook(_second_column)
    return convolution


def _second_column(convolution: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
    (maps,) = inputs
    return (F.pad(maps, (0, 1)) if maps.shape[-1] == 1 else maps,)
