"""The head that methods compare features with."""

from __future__ import annotations

from torch import nn


def projection_head(channels: int, hidden_dim: int, projection_dim: int) -> nn.Sequential:
    """(N, channels) -> (N, projection_dim), normalised over the batch; keeps no running statistics.

    Features of an untrained network hardly differ between images. The first normalisation makes
    the differences large, so that the comparison has something to tell apart from the first step.
    """
    return nn.Sequential(
        nn.BatchNorm1d(channels, affine=False, track_running_stats=False),
        nn.Linear(channels, hidden_dim, bias=False),
        nn.BatchNorm1d(hidden_dim, track_running_stats=False),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, projection_dim),
    )
