"""One optimiser step, on all processes together."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fvcore.common.param_scheduler import ParamScheduler
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from predet.d2 import comm
from predet.engine.distributed import (
    Batch,
    gather_lines,
    max_over_ranks,
    seed_all,
    with_step_counts,
)
from predet.engine.ema import EMA
from predet.engine.precision import Precision
from predet.engine.replay import image_keys, save_replay
from predet.engine.schedule import set_learning_rates
from predet.engine.settings import TrainSettings
from predet.engine.stopping import StopRequest

logger = logging.getLogger(__name__)


class NonFiniteError(FloatingPointError):
    """A loss or the gradient is NaN or infinite; no process has updated its weights."""


class StepResult(NamedTuple):
    """Scalars of one step, on the device, of this rank alone."""

    losses: dict[str, Tensor]  # "loss" is the sum of the others
    grad_norm: Tensor  # 2-norm over all parameters before clipping
    lr: float  # base learning rate times the schedule
    stop: bool  # some rank has been asked to stop; the same on all ranks
    waited: float  # seconds that this rank was ahead of the slowest one


class OptimizerStep:
    """Forward, backward, check, update. What it holds changes at step boundaries only.

    Modules of the model that have `after_update(step, max_iter)` are called when the weights have
    been updated, with the number of the step (from 0): a momentum copy follows the weights so.

    Attributes:
        model: the bare model, whose weights are trained and saved.
        ema: its moving average, or None.
        precision: autocast and, for fp16, the gradient scaler.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: ParamScheduler,
        settings: TrainSettings,
        stop: StopRequest,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.settings = settings
        self.stop = stop
        self.device = next(model.parameters()).device
        self.precision = Precision(name=settings.precision, device_type=self.device.type)
        self.ema = EMA(model, decay=settings.ema_decay) if settings.ema_decay else None
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._followers = [part for part in model.modules() if hasattr(part, "after_update")]
        self._wrapped = model
        self._settled = True
        self._forward_seconds = 0.0  # of this step

    def wrap(self) -> None:
        """Make ready to train: exchange of gradients between processes, compilation."""
        self.model.train()
        self._wrapped = self.model
        if self.settings.compile:
            compile_parts(self.model)
        if comm.get_world_size() > 1:
            self._wrapped = DistributedDataParallel(
                self.model,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                find_unused_parameters=self.settings.find_unused_parameters,
            )
            self._settled = comm.get_world_size() == 2  # a + b = b + a, whatever the order

    def run(self, step: int, batches: list[Batch], *, data_seconds: float = 0.0) -> StepResult:
        """Run step number `step` (from 0) on the batches of this rank.

        Args:
            step: number of the step, from 0.
            batches: the micro-batches of this rank.
            data_seconds: how long this rank has waited for them.

        Raises:
            NonFiniteError: on every rank, before any has updated its weights.
        """
        settings = self.settings
        self._forward_seconds = 0.0
        batches = with_step_counts(batches)
        if not self._settled:
            self._settle(batches[-1])
        seed_all(settings.seed, step, comm.get_rank())
        lr = set_learning_rates(self.optimizer, self.schedule, step, settings.max_iter)
        self.optimizer.zero_grad(set_to_none=True)
        terms: list[dict[str, Tensor]] = []
        try:
            for index, batch in enumerate(batches):
                terms.append(self._backward(batch, last=index == len(batches) - 1))
        except Exception:
            path = self._keep(step, batches, terms)
            keys = ", ".join(image_keys(batches))
            logger.error("step %d failed on images %s; replay bundle %s", step, keys, path)
            raise
        self.precision.unscale(self.optimizer)
        norm = self._clip()
        losses = _mean_terms(terms)
        bad_loss = ~torch.isfinite(losses["loss"])
        bad_norm = ~torch.isfinite(norm)
        if self.precision.skips_overflow:
            bad_norm = torch.zeros_like(bad_norm)
        own_seconds = data_seconds + self._forward_seconds
        told = norm.new_tensor([self.stop.requested, own_seconds])
        flags = max_over_ranks(torch.cat([torch.stack([bad_loss, bad_norm]), told])).tolist()
        if flags[0] or flags[1]:
            own = bool(bad_loss) if flags[0] else bool(bad_norm)
            self._fail(step, batches, terms, own, norm)
        self.precision.step(self.optimizer)
        for part in self._followers:
            part.after_update(step, settings.max_iter)
        if self.ema is not None:
            self.ema.update()
        waited = max(0.0, flags[3] - own_seconds)
        return StepResult(losses=losses, grad_norm=norm, lr=lr, stop=bool(flags[2]), waited=waited)

    def _settle(self, batch: Batch) -> None:
        """Let the exchange of gradients find its final order before the first step counts.

        After its first backward pass DistributedDataParallel packs gradients anew, in the order in
        which they came, and with it changes the order of summation over three and more processes.
        A run that goes on in a new process must not take its first step in the other order.
        """
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        self._backward(batch, last=True)
        with torch.no_grad():
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        self._settled = True

    def _backward(self, batch: Batch, *, last: bool) -> dict[str, Tensor]:
        """Add the gradient of one batch; processes exchange gradients at the last one only."""
        model = self._wrapped
        alone: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if isinstance(model, DistributedDataParallel) and not last:
            alone = model.no_sync()
        with alone:
            with self.precision.autocast():
                start = time.perf_counter()
                losses = model(batch)
                self._forward_seconds += time.perf_counter() - start
                total = torch.stack([loss.float() for loss in losses.values()]).sum()
            self.precision.backward(total / self.settings.accumulation_steps)
        return {name: loss.detach().float() for name, loss in losses.items()}

    def _clip(self) -> Tensor:
        largest = self.settings.clip_grad_norm
        largest = math.inf if largest is None else largest
        return nn.utils.clip_grad_norm_(self._parameters, largest).detach()

    def _fail(
        self,
        step: int,
        batches: list[Batch],
        terms: list[dict[str, Tensor]],
        own: bool,
        norm: Tensor,
    ) -> None:
        """Stop on all ranks with the same message; ranks that are to blame keep their batch."""
        line = None
        if own:
            path = self._keep(step, batches, terms)
            losses = {name: float(value) for name, value in _mean_terms(terms).items()}
            broken = {name: value for name, value in losses.items() if not math.isfinite(value)}
            what = broken or {"gradient norm": float(norm), **losses}
            line = (
                f"{', '.join(f'{name} = {value:g}' for name, value in what.items())} on images "
                f"{', '.join(image_keys(batches))}; replay bundle {path}"
            )
        lines = "\n".join(f"  rank {rank}: {text}" for rank, text in gather_lines(line))
        raise NonFiniteError(
            f"step {step}: loss or gradient is not finite; no weight was updated\n{lines}\n"
            "Checkpoints of earlier steps are whole. Usual causes: a learning rate that is too "
            "high, train.clip_grad_norm=None, fp16."
        )

    def _keep(self, step: int, batches: list[Batch], terms: list[dict[str, Tensor]]) -> str:
        """Write the replay bundle; its path, or why there is none."""
        try:
            return str(self._save_replay(step, batches, terms))
        except OSError as error:
            return f"could not be written: {error}"

    def _save_replay(self, step: int, batches: list[Batch], terms: list[dict[str, Tensor]]) -> Path:
        return save_replay(
            self.settings.output_dir,
            batches=batches,
            model=self.model,
            losses=[{name: float(value) for name, value in group.items()} for group in terms],
            step=step,
            seed=self.settings.seed,
            rank=comm.get_rank(),
            precision=self.settings.precision,
        )


def compile_parts(model: nn.Module) -> None:
    """Compile, in place, what modules say of themselves is worth it; else the whole model.

    A detector overrides `compile`: its forward has parts that are no work for a compiler.
    """
    # Else torch splits graphs at DistributedDataParallel's buckets, to exchange gradients earlier;
    # that fails on shapes that change and on checkpointed blocks.
    torch._dynamo.config.optimize_ddp = False
    own = [part for part in model.modules() if type(part).compile is not nn.Module.compile]
    for part in own or [model]:
        part.compile()


def _mean_terms(terms: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Each loss averaged over the batches of a step, and their sum as `loss`."""
    if len(terms) == 1:
        return {"loss": torch.stack(list(terms[0].values())).sum(), **terms[0]}
    names = dict.fromkeys(name for group in terms for name in group)
    zero = next(iter(terms[0].values())).new_zeros(())
    means = {n: torch.stack([g.get(n, zero) for g in terms]).sum() / len(terms) for n in names}
    return {"loss": torch.stack(list(means.values())).sum(), **means}
