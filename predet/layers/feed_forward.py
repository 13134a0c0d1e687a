"""The feed-forward block of transformers (Vaswani et al., 2017, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from predet.layers.checkpointing import run_block
from predet.ops.dropout import dropout, relu_dropout_

# Numbers of the hidden layer that are worked on at a time on a CPU: 4 MB of fp32.
_HIDDEN_NUMBERS = 2**20


class FeedForward(nn.Module):
    """Two linear layers with an activation and dropout between them.

    The hidden layer is the widest tensor of a model, and most of its work is moving it. On a CPU
    it is made for some rows at a time, so that it stays in the cache, and computed again in the
    backward pass instead of kept: that costs one matrix product of six and saves three tensors of
    the hidden size. Compiled code and GPUs have their own ways (`checkpointing` of transformers).

    Args:
        hidden_dim: D, channels in and out.
        ffn_dim: channels of the hidden layer.
        dropout: probability for the hidden layer.
        activation: "relu" or "gelu".
    """

    def __init__(
        self, *, hidden_dim: int, ffn_dim: int, dropout: float, activation: str = "relu"
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {list(ACTIVATIONS)}, got {activation!r}")
        self.linear1 = nn.Linear(hidden_dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, hidden_dim)
        self.dropout = dropout
        self.activate = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        rows = x.flatten(0, -2)
        each = max(1, _HIDDEN_NUMBERS // self.linear1.out_features)
        if x.device.type != "cpu" or torch.compiler.is_compiling() or len(rows) <= each:
            return self._mix(x)
        parts = [run_block(self._mix, part, checkpointing=True) for part in rows.split(each)]
        return torch.cat(parts).view_as(x)

    def _mix(self, x: Tensor) -> Tensor:
        return self.linear2(self.activate(self.linear1(x), self.dropout, self.training))


def gelu_dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """dropout(gelu(x), probability, training)."""
    return dropout(F.gelu(x), probability, training)


ACTIVATIONS = {"relu": relu_dropout_, "gelu": gelu_dropout}
