"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA:
    """`average = decay * average + (1 - decay) * weight` after each step; starts at the weights.

    Parameters that are trained are averaged; everything else (buffers, frozen parameters) is
    copied. `model` is a whole model of its own, to evaluate and to save.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._average = get_ema_multi_avg_fn(decay)
        trained = [parameter.requires_grad for parameter in model.parameters()]
        pairs = list(zip(self.model.parameters(), model.parameters(), strict=True))
        self._averaged = [pair for pair, flag in zip(pairs, trained, strict=True) if flag]
        self._copied = [pair for pair, flag in zip(pairs, trained, strict=True) if not flag]
        self._copied += zip(self.model.buffers(), model.buffers(), strict=True)

    @torch.no_grad()
    def update(self) -> None:
        own = [pair[0] for pair in self._averaged]
        source = [pair[1].detach() for pair in self._averaged]
        if own:
            self._average(own, source, 0)
        for buffer, current in self._copied:
            buffer.copy_(current)

    def state_dict(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(state)
