"""Running a model over a loader and handing what it finds to an evaluator."""

from __future__ import annotations

import contextlib
import datetime
import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from predet.d2 import DatasetEvaluator
from predet.d2.embedded import comm

logger = logging.getLogger(__name__)

REPORT_EVERY = 30.0  # seconds


def evaluate(
    model: nn.Module, loader: Iterable[list[dict[str, Any]]], evaluator: DatasetEvaluator
) -> dict[str, float]:
    """Evaluate `model` on what `loader` gives, on all processes together.

    The model runs in evaluation mode without gradients; every module's mode is put back afterwards,
    also when something fails. Processes wait for the slowest, and for the one that counts, without
    regard to the timeout of the process group.

    Returns:
        The evaluator's result, the same on every process.
    """
    evaluator.reset()
    start = time.monotonic()
    images = 0
    with evaluation_mode(model), torch.no_grad():
        for batch in with_progress(loader, "evaluation"):
            evaluator.process(batch, model(batch))
            images += len(batch)
    seconds = time.monotonic() - start
    logger.info("evaluation: %d images of this process in %.1f s", images, seconds)
    comm.synchronize()
    return comm.all_gather(evaluator.evaluate())[0]


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode; every module returns to the mode that it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def with_progress(loader: Iterable[Any], task: str) -> Iterator[Any]:
    """The loader's batches; a line with rate and ETA goes to the log now and then."""
    total = len(loader) if hasattr(loader, "__len__") else None
    start = last = time.monotonic()
    for done, batch in enumerate(loader, start=1):
        yield batch
        now = time.monotonic()
        if now - last >= REPORT_EVERY:
            last = now
            rate = done / (now - start)
            remaining = "?" if total is None else _clock((total - done) / rate)
            logger.info("%s: batch %d of %s, ETA %s", task, done, total or "?", remaining)


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
