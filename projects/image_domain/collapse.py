"""A look, now and then, at whether the backbone gives the same features for every image."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# Of `spread`. An untrained ResNet gives 0.05 to 0.3, one that has collapsed well below 0.001.
COLLAPSED = 0.01


class CollapseWatch(nn.Module):
    """Warns when features of different images are the same; it changes nothing.

    Every `period` calls, beginning with the first, it measures `spread` and keeps it as `last`.

    Args:
        period: calls between two measurements; each one waits for the device.
    """

    def __init__(self, *, period: int) -> None:
        super().__init__()
        if period < 1:
            raise ValueError(f"period must be 1 or more, got {period}")
        self.period = period
        self.last: float | None = None
        self._calls = 0

    @torch.compiler.disable
    @torch.no_grad()
    def forward(self, features: Tensor) -> None:
        """Look at features (B, D) of B different images."""
        self._calls += 1
        if (self._calls - 1) % self.period or len(features) < 2:
            return
        self.last = spread(features).item()
        if not self.last >= COLLAPSED:  # so that NaN is reported too
            logger.warning(
                "the backbone's features have collapsed: their spread over %d images is %.2g "
                "(1: unrelated, 0: all the same), at call %d. Usual causes: a learning rate that "
                "is too high, images that are all alike",
                len(features),
                self.last,
                self._calls,
            )


def spread(features: Tensor) -> Tensor:
    """How far the directions of features (B, D) are spread: 0 all the same, 1 unrelated.

    The root of 1 - |mean of the unit vectors| ** 2, that is the root of their summed variances.
    """
    unit = nn.functional.normalize(features.float(), dim=1)
    return unit.var(dim=0, correction=0).sum().sqrt()
