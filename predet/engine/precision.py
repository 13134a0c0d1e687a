"""Numeric precision of training: fp32, or bf16 and fp16 by autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SMALLEST_SCALE = 2.0**-10


class Precision:
    """Autocast and, for fp16, the scaler that keeps small gradients above zero.

    fp16 skips a step whose gradient overflowed and halves the scale, as usual; a scale that has
    fallen below 2**-10 means that the loss itself has left the range of fp16.
    """

    def __init__(self, *, name: str, device_type: str) -> None:
        self.name = name
        self.device_type = device_type
        self.skips_overflow = name == "fp16"
        self._scaler = torch.amp.GradScaler(device_type, enabled=self.skips_overflow)

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(
            self.device_type, dtype=_DTYPES[self.name], enabled=self.name != "fp32"
        )

    def backward(self, loss: Tensor) -> None:
        self._scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring the gradients to their true size, for clipping."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step the optimiser, or skip it where a fp16 gradient overflowed.

        Raises:
            FloatingPointError: fp16 skips step after step.
        """
        self._scaler.step(optimizer)
        self._scaler.update()
        if self.skips_overflow and self._scaler.get_scale() < _SMALLEST_SCALE:
            raise FloatingPointError(
                f"the fp16 loss scale fell below {_SMALLEST_SCALE}: gradients overflow at every "
                "step; use train.precision=bf16 or fp32, or a lower learning rate"
            )

    def state_dict(self) -> dict[str, Any]:
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.skips_overflow:
            self._scaler.load_state_dict(state)
