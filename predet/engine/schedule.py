"""Learning-rate schedules: pure functions of the step, so there is no state to save."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from fvcore.common.param_scheduler import ParamScheduler


class WarmupSchedule(ParamScheduler):
    """Linear warm-up, then constant pieces or a half cosine.

    Steps are those of the run whose length is `max_iter`; with another `train.max_iter` the whole
    schedule is stretched.

    Args:
        max_iter: steps that `drop_steps` and `warmup_steps` refer to.
        drop_steps: the multiplier is `gamma ** k` once k of these steps have begun.
        gamma: factor of each drop.
        warmup_steps: steps over which the multiplier rises linearly from `warmup_factor` to 1;
            a shorter run ends while it rises.
        cosine: fall to `final_factor` along half a cosine after the warm-up, instead of drops.
    """

    def __init__(
        self,
        *,
        max_iter: int,
        drop_steps: Sequence[int] = (),
        gamma: float = 0.1,
        warmup_steps: int = 0,
        warmup_factor: float = 0.001,
        cosine: bool = False,
        final_factor: float = 0.0,
    ) -> None:
        drops = list(drop_steps)
        if drops != sorted(set(drops)) or any(step <= 0 for step in drops):
            raise ValueError(f"drop_steps must rise and be positive, got {drops}")
        if cosine and drops:
            raise ValueError("a schedule has drop_steps or cosine=True, not both")
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, got {warmup_steps}")
        self.max_iter = max_iter
        self.drop_steps = drops
        self.gamma = gamma
        self.warmup_steps = warmup_steps
        self.warmup_factor = warmup_factor
        self.cosine = cosine
        self.final_factor = final_factor

    def __call__(self, where: float) -> float:
        step = where * self.max_iter
        if abs(step - round(step)) < 1e-6:  # where is step / max_iter, rounded
            step = round(step)
        if step < self.warmup_steps:
            return self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup_steps
        if self.cosine:
            progress = (step - self.warmup_steps) / (self.max_iter - self.warmup_steps)
            falling = 0.5 * (1 + math.cos(math.pi * progress))
            return self.final_factor + (1 - self.final_factor) * falling
        return self.gamma ** sum(step >= drop for drop in self.drop_steps)


def set_learning_rates(
    optimizer: torch.optim.Optimizer, schedule: ParamScheduler, step: int, max_iter: int
) -> float:
    """Set `lr = base * lr_factor * schedule(step / max_iter)` in every group.

    `base` is the learning rate that the optimiser was made with. Returns `base * schedule`.
    """
    rate = optimizer.defaults["lr"] * schedule(step / max_iter)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_factor", 1.0)
    return rate
