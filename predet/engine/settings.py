"""The options of the section `train`, checked once when a run begins."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

PRECISIONS = ("fp32", "bf16", "fp16")
AUTO_REINIT = "auto"


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How to train, apart from model, data, optimiser and schedule.

    Args:
        max_iter: optimiser steps of the whole run.
        output_dir: everything the run makes lies here.
        init_checkpoint: weights to start from (a fresh run) or to evaluate; empty: none.
        reinit: dotted names that keep their fresh values when `init_checkpoint` is loaded, or
            "auto": the class head, if it does not know the classes of the data in their order.
        seed: every random number of step s on rank r comes from (seed, s, r).
        device: "cuda" (falls back to "cpu", said in the log) or "cpu"; which GPUs there are to
            use is said by CUDA_VISIBLE_DEVICES.
        precision: "fp32"; "bf16" or "fp16" by autocast (fp16 with a gradient scaler).
        accumulation_steps: parts into which the loader divides the batch of an optimiser step, to
            save memory; the gradient is that of the whole batch.
        clip_grad_norm: largest 2-norm of the whole gradient, or None.
        ema_decay: decay a step of the averaged weights, or None for no average.
        log_period, eval_period, checkpoint_period: in optimiser steps; 0 switches periodic
            evaluation or checkpoints off (the end of the run has both all the same).
        eval_at: steps after which there is an evaluation, too; 0 is before the first step, where a
            wrong set-up shows at once.
        best_metric: name in the evaluation's results that chooses the best checkpoint, "AP/cat"
            say; None: no best checkpoint. Of equal values the first counts.
        best_mode: "max" or "min", which value is better.
        compile: run the model through torch.compile.
        channels_last: keep 4-d weights in the channels-last layout.
        find_unused_parameters: of DistributedDataParallel; slow, and not needed by our models.
        on_bad_sample: "skip" or "error"; for the loaders, which refer to it.
    """

    max_iter: int
    output_dir: str = "./output"
    init_checkpoint: str = ""
    reinit: tuple[str, ...] | str = ()
    seed: int = 0
    device: str = "cuda"
    precision: str = "fp32"
    accumulation_steps: int = 1
    clip_grad_norm: float | None = 0.1
    ema_decay: float | None = None
    log_period: int = 20
    eval_period: int = 5000
    checkpoint_period: int = 1000
    eval_at: tuple[int, ...] = ()
    best_metric: str | None = "AP"
    best_mode: str = "max"
    compile: bool = False
    channels_last: bool = False
    find_unused_parameters: bool = False
    on_bad_sample: str = "skip"

    def __post_init__(self) -> None:
        for name in ("max_iter", "accumulation_steps", "log_period"):
            self._check_int(name, least=1)
        for name in ("seed", "eval_period", "checkpoint_period"):
            self._check_int(name, least=0)
        for name in ("output_dir", "init_checkpoint", "device"):
            self._check(name, isinstance(getattr(self, name), str), "a text")
        which = "cuda or cpu; CUDA_VISIBLE_DEVICES says which GPU"
        self._check("device", ":" not in self.device, which)
        for name in ("compile", "channels_last", "find_unused_parameters"):
            self._check(name, isinstance(getattr(self, name), bool), "True or False")
        self._check("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        self._check("on_bad_sample", self.on_bad_sample in ("skip", "error"), "skip or error")
        self._check("best_mode", self.best_mode in ("max", "min"), "max or min")
        metric = self.best_metric
        self._check("best_metric", metric is None or isinstance(metric, str), "a name or None")
        self._check_steps("eval_at")
        clip, decay = self.clip_grad_norm, self.ema_decay
        self._check("clip_grad_norm", clip is None or _is_number(clip, 0), "a number > 0 or None")
        self._check(
            "ema_decay",
            decay is None or (_is_number(decay, 0) and decay < 1),
            "a number between 0 and 1 (both excluded) or None",
        )
        if isinstance(self.reinit, str):
            self._check("reinit", self.reinit == AUTO_REINIT, f"a list of names or '{AUTO_REINIT}'")
        else:
            object.__setattr__(self, "reinit", tuple(self.reinit))

    def _check_int(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, float) and value.is_integer():  # 9e4 on the command line
            object.__setattr__(self, name, int(value))
            value = int(value)
        right = isinstance(value, int) and not isinstance(value, bool) and value >= least
        self._check(name, right, f"a whole number >= {least}")

    def _check_steps(self, name: str) -> None:
        value = getattr(self, name)
        steps = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [-1]
        right = all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in steps)
        self._check(name, right, "a list of whole numbers >= 0")
        object.__setattr__(self, name, tuple(steps))

    def _check(self, name: str, right: bool, expected: str) -> None:
        if not right:
            raise ValueError(f"train.{name}: expected {expected}, got {getattr(self, name)!r}")

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Every option with its default (`dataclasses.MISSING` where it must be given)."""
        return {field.name: field.default for field in dataclasses.fields(cls)}

    @classmethod
    def from_config(cls, section: Mapping[str, Any]) -> TrainSettings:
        """Check and convert the section `train` of a config.

        Raises:
            ValueError: an unknown key (with the nearest known one), or a value out of range.
        """
        known = cls.defaults()
        for name in section:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=3)
                raise ValueError(
                    f"unknown key 'train.{name}'"
                    + (f"; nearest: {', '.join(f'train.{n}' for n in near)}" if near else "")
                    + f"; known: {', '.join(known)}"
                )
        if "max_iter" not in section:
            raise ValueError("the config does not set train.max_iter (number of optimiser steps)")
        return cls(**dict(section))


def _is_number(value: Any, above: float) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > above
