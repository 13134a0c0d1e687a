"""The trainer: one for pre-training, fine-tuning and supervised training.

A model is a meta-architecture: `model(batch)` of a list of dicts returns a dict of scalar losses,
already weighted, that are summed. A loader gives batches by the number of the step. The run is a
pure function of config, data and number of processes: each optimiser step seeds every generator
from (seed, step, rank), schedules are functions of the step, and the loader draws from generators
of its own. So a checkpoint at a step boundary is all it takes to go on to the bit.

A step's batch is divided over processes and, with `accumulation_steps`, over micro-batches; all of
these parts are normalised by the boxes of the whole step, so the division changes nothing but the
order of summation (and what looks at a part alone: batch statistics, dropout, padding).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn

from predet.checkpoint import Checkpoints, read_checkpoint
from predet.d2 import comm
from predet.engine.distributed import Batch, broadcast_buffers, from_main, raise_together
from predet.engine.metrics import (
    History,
    Window,
    group_losses,
    memory_gb,
    progress_line,
    result_table,
    without_nan,
    write_json,
)
from predet.engine.provenance import check_same_run
from predet.engine.settings import TrainSettings
from predet.engine.step import OptimizerStep
from predet.engine.stopping import StopRequest

logger = logging.getLogger(__name__)


class Loader(Protocol):
    """What the trainer needs of a training loader."""

    def batches(self, start_step: int, accumulation_steps: int = 1) -> Iterator[Batch]:
        """This rank's batches from `start_step` on, `accumulation_steps` of them a step."""
        ...


class Trainer:
    """Trains a model; everything it makes lies in `settings.output_dir`.

    Args:
        model: on its device, with initial weights; the same on every rank.
        optimizer: made with the base learning rate; groups may hold `lr_factor`.
        schedule: multiplier of the learning rate, a function of step / max_iter.
        identity: of `run_identity`; goes into every checkpoint.
        evaluate: model -> metrics, on all ranks; None: no evaluation.
        stop: asked at every step boundary.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        loader: Loader,
        optimizer: torch.optim.Optimizer,
        schedule: ParamScheduler,
        settings: TrainSettings,
        identity: Mapping[str, Any],
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        self.settings = settings
        self.loader = loader
        self.evaluate = evaluate
        self.checkpoints = Checkpoints(settings.output_dir)
        self.steps = OptimizerStep(
            model=model,
            optimizer=optimizer,
            schedule=schedule,
            settings=settings,
            stop=stop or StopRequest(),
        )
        self.step = 0  # steps that are done
        self.best: dict[str, Any] = {}
        self.results: dict[str, float] = {}
        self._evaluated = -1  # step of the last evaluation
        self._saved = -1  # step of the last checkpoint
        self._identity = dict(identity)
        self._window = Window()
        self._history: History | None = None
        self._summary = Path(settings.output_dir) / "results.json"

    @property
    def finished(self) -> bool:
        return self.step >= self.settings.max_iter

    def prepare(self, *, resume: bool) -> None:
        """Continue from the checkpoints of the output folder, or make sure that there are none.

        Raises:
            ValueError: there are checkpoints and `resume` is False; they belong to another run;
                none of them is whole.
        """
        problem, path, state = None, None, None
        if comm.is_main_process():
            try:
                state, path = self._find_checkpoint(resume)
            except ValueError as error:
                problem = str(error)
        raise_together(problem)
        path = from_main(str(path) if path else None)
        if path is None:
            return
        try:
            if state is None:
                state = read_checkpoint(path)
            check_same_run(state, self._identity, path)
        except ValueError as error:
            problem = f"rank {comm.get_rank()}: {error}" if comm.get_rank() else str(error)
        raise_together(problem)
        assert state is not None
        self._load(state)
        logger.info("resuming from %s: %d steps are done", path, self.step)

    def train(self) -> dict[str, float]:
        """Train to the end, or until asked to stop. Returns the last evaluation's metrics."""
        settings = self.settings
        evaluated = self._evaluated == self.step
        self._history = History(settings.output_dir, step=self.step, evaluated=evaluated)
        if comm.is_main_process() and not self.finished:
            self._summary.unlink(missing_ok=True)  # its presence says that the run is finished
        try:
            if not self.finished and self._evaluation_due() and not evaluated:
                self._evaluate()  # before the first step, or killed after the checkpoint
            if not self.finished and not self._run_steps():
                self._save()
                logger.info(
                    "stopped after step %d of %d as asked; the same command with --resume goes on",
                    self.step,
                    settings.max_iter,
                )
            else:
                self._finish()
        finally:
            self._history.close()
        return self.results

    def _run_steps(self) -> bool:
        """Run to the last step. Returns False if asked to stop before it."""
        settings = self.settings
        self.steps.wrap()
        stream = iter(self.loader.batches(self.step, settings.accumulation_steps))
        try:
            while not self.finished:
                start = time.perf_counter()
                batches = list(islice(stream, settings.accumulation_steps))
                waiting = time.perf_counter() - start
                result = self.steps.run(self.step, batches, data_seconds=waiting)
                self.step += 1
                self._window.add({**result.losses, "grad_norm": result.grad_norm})
                self._window.time(time.perf_counter() - start, waiting, result.waited)
                if self.step % settings.log_period == 0 or self.finished:
                    self._report(result.lr)
                if result.stop and not self.finished:
                    return False
                if not self.finished:
                    self._periodic()
        finally:
            if hasattr(stream, "close"):
                stream.close()  # ends the loader's workers
        return True

    # -- between steps ---------------------------------------------------------------------------

    def _periodic(self) -> None:
        settings = self.settings
        evaluation = self._evaluation_due()
        period = settings.checkpoint_period
        if (period and self.step % period == 0) or evaluation:
            self._save()  # before the evaluation, which may take long
        if evaluation:
            self._evaluate()

    def _evaluation_due(self) -> bool:
        if self.evaluate is None:
            return False
        if self.finished or self.step in self.settings.eval_at:
            return True
        period = self.settings.eval_period
        return bool(self.step and period and self.step % period == 0)

    def _report(self, lr: float) -> None:
        window, self._window = self._window, Window()
        means = window.means()
        norm, total = means.pop("grad_norm"), means.pop("loss")
        row = {
            "step": self.step,
            "lr": lr,
            "loss": total,
            **group_losses(means),
            "grad_norm": norm,
            "seconds_per_step": window.seconds / max(window.timed, 1),
            "data_share": window.waiting / max(window.seconds, 1e-9),
            **window.waits(),
            "memory_gb": memory_gb(self.steps.device),
        }
        scalars = {name: value for name, value in row.items() if name != "step"}
        assert self._history is not None
        self._history.write(row, {**means, **scalars})
        logger.info(progress_line(row, max_iter=self.settings.max_iter))

    def _evaluate(self) -> None:
        """Evaluate (the average where there is one), on all ranks, and keep the best weights."""
        assert self.evaluate is not None
        model, ema = self.steps.model, self.steps.ema
        both = ema is not None and self.finished
        if both:  # the model itself once, and first: what the evaluator writes is of the average
            broadcast_buffers(model)
            plain = self.evaluate(model)
        chosen = model if ema is None else ema.model
        broadcast_buffers(chosen)
        results = dict(self.evaluate(chosen))
        metric = self.settings.best_metric
        if both and metric in plain:
            results[f"{metric} (no EMA)"] = plain[metric]
        self.results = {name: float(value) for name, value in results.items()}
        self._evaluated = self.step
        assert self._history is not None
        self._history.write({"step": self.step, **self.results}, self.results)
        logger.info("step %d evaluation\n%s", self.step, result_table(self.results))
        self._keep_best()

    def _keep_best(self) -> None:
        """Write the best checkpoint if the evaluation that has just been is the best one."""
        metric = self.settings.best_metric
        if metric is None:
            return
        if metric not in self.results:
            raise ValueError(
                f"train.best_metric is '{metric}', but the evaluation gives "
                f"{', '.join(self.results)}; choose one of them, or null for no best checkpoint"
            )
        sign = 1 if self.settings.best_mode == "max" else -1
        value = self.results[metric]
        if sign * value > sign * self.best.get("value", -sign * math.inf):  # NaN is never better
            self.best = {"metric": metric, "value": value, "step": self.step}
            state = {**self._weights(), "results": self.results}
            self._write(lambda: self.checkpoints.save_best(state))

    def _finish(self) -> None:
        if self._saved != self.step:
            self._save()
        if self.evaluate is not None and self._evaluated != self.step:
            self._evaluate()
            self._save()
        summary = {"step": self.step, "results": self.results, "best": self.best}
        if comm.is_main_process():
            write_json(self._summary, without_nan(summary))
        if self.best:
            logger.info("best %(metric)s %(value).2f at step %(step)d", self.best)
        logger.info(
            "finished: %d steps are done; everything is in %s", self.step, self._summary.parent
        )

    # -- checkpoints -----------------------------------------------------------------------------

    def _save(self) -> None:
        """Write the state of this step boundary (rank 0; all ranks must call it)."""
        window = self._window.state_dict()
        self._write(
            lambda: self.checkpoints.save({**self._weights(), **self._progress(), "window": window})
        )
        self._saved = self.step

    def _write(self, write: Callable[[], Any]) -> None:
        """Have rank 0 write a checkpoint, or all ranks stop where it cannot be written."""
        problem = None
        if comm.is_main_process():
            try:
                write()
            except OSError as error:
                problem = f"cannot save a checkpoint in {self.checkpoints.folder}: {error}"
                if self._saved >= 0:
                    problem += (
                        f"; that of step {self._saved} is whole, and the same command with "
                        "--resume goes on from it"
                    )
        raise_together(problem)

    def _weights(self) -> dict[str, Any]:
        ema = self.steps.ema
        return {
            **self._identity,
            "model": self.steps.model.state_dict(),
            "ema": ema.state_dict() if ema is not None else {},
            "step": self.step,
            "best": self.best,
        }

    def _progress(self) -> dict[str, Any]:
        return {
            "optimizer": self.steps.optimizer.state_dict(),
            "scaler": self.steps.precision.state_dict(),
            "evaluated": self._evaluated,
            "results": self.results,
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self.steps.model.load_state_dict(state["model"])
        if self.steps.ema is not None:
            self.steps.ema.load_state_dict(state["ema"])
        self.steps.optimizer.load_state_dict(state["optimizer"])
        self.steps.precision.load_state_dict(state["scaler"])
        self._window.load_state_dict(state["window"])
        self.step = state["step"]
        self.best, self.results = dict(state["best"]), dict(state["results"])
        self._evaluated, self._saved = state["evaluated"], self.step

    def _find_checkpoint(self, resume: bool) -> tuple[dict[str, Any] | None, Any]:
        if not resume:
            self.checkpoints.require_none()
            return None, None
        found = self.checkpoints.load()
        if found is None:
            logger.info("no checkpoint in %s: starting from step 0", self.checkpoints.folder)
            return None, None
        return found
