"""The worker side of the loaders: read one sample after the other, in processes or in this one."""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.util
import signal
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from predet.data import sampling
from predet.data.dataset import DetectionDataset, Record
from predet.data.images import BadSampleError

Mapper = Callable[[Record, np.random.Generator], dict[str, Any]]

# A worker that is told to stop goes on for this long: a job that is being shut down sends SIGTERM
# to all its processes, and the main one still needs batches to finish its step and save.
SIGTERM_GRACE_SECONDS = 30


class Loaded(NamedTuple):
    """What a worker hands back: a sample, or none, and what it skipped on the way.

    Failures travel as text, for an exception that crosses a process comes out with the traceback
    of the worker as its message.
    """

    sample: dict[str, Any] | None
    skipped: tuple[tuple[str, str], ...] = ()  # key, reason
    bad_sample: str | None = None  # stop with BadSampleError
    exhausted: str | None = None  # stop with ValueError


class TrainSamples(Dataset[Loaded]):
    """Stream position -> sample, or its replacement."""

    def __init__(
        self,
        dataset: DetectionDataset,
        mapper: Mapper,
        stream: sampling.Stream,
        total_batch_size: int,
        on_bad_sample: str,
    ):
        self.dataset, self.mapper, self.stream = dataset, mapper, stream
        self.total_batch_size, self.on_bad_sample = total_batch_size, on_bad_sample

    def __getitem__(self, position: int) -> Loaded:
        skipped: dict[str, str] = {}
        for candidate in self._candidates(position):
            epoch, index = self.stream[candidate]
            if self.dataset.key(index) in skipped:
                continue
            record = self.dataset[index]
            rng = sampling.training_rng(self.stream.seed, epoch, record.image_id)
            try:
                return Loaded(self.mapper(record, rng), tuple(skipped.items()))
            except BadSampleError as error:
                if self.on_bad_sample == "error":
                    return Loaded(None, bad_sample=str(error))
                skipped[record.key] = str(error)
        examples = "; ".join(list(skipped.values())[:3])
        return Loaded(
            None,
            exhausted=f"data set {self.dataset.name!r}: none of its {len(skipped)} images can be "
            f"read: {examples}",
        )

    def _candidates(self, position: int) -> Iterator[int]:
        yield position
        yield from sampling.replacement_positions(
            position, total_batch_size=self.total_batch_size, num_images=len(self.dataset)
        )


class TestSamples(Dataset[Loaded]):
    """Index within a rank's share -> sample, or none."""

    def __init__(self, dataset: DetectionDataset, mapper: Mapper, share: range, on_bad_sample: str):
        self.dataset, self.mapper, self.share = dataset, mapper, share
        self.on_bad_sample = on_bad_sample

    def __len__(self) -> int:
        return len(self.share)

    def __getitem__(self, index: int) -> Loaded:
        record = self.dataset[self.share[index]]
        try:
            return Loaded(self.mapper(record, sampling.test_rng(record.image_id)))
        except BadSampleError as error:
            if self.on_bad_sample == "error":
                return Loaded(None, bad_sample=str(error))
            return Loaded(None, skipped=((record.key, str(error)),))


def start_reading(
    samples: Dataset[Loaded], dataset: DetectionDataset, num_workers: int, **batching: Any
) -> Iterator[list[Loaded]]:
    """Read `samples` in batches; the workers begin at once and end with the last reference.

    Args:
        batching: How the `DataLoader` makes batches: `batch_size` or `batch_sampler`.
    """
    if num_workers and multiprocessing.get_start_method() != "fork":
        dataset.share_memory()
    loader = DataLoader(
        samples,
        num_workers=num_workers,
        collate_fn=list,
        worker_init_fn=_init_worker,
        generator=torch.Generator(),  # without it, one number of the global generator is used up
        **batching,
    )
    return iter(loader)


def end_at_exit(batches: Generator[Any, None, None]) -> None:
    """Let the workers go when this process ends, should `batches` still be held by someone then.

    An exception's traceback is enough for that. Left to themselves, the workers would be waited
    for and sent SIGTERM, for which they do not stop at once. `Finalize` serves processes that
    multiprocessing has started: they end without `atexit`.
    """
    reference = weakref.ref(batches)

    def end() -> None:
        atexit.unregister(end)
        alive = reference()
        if alive is not None:
            alive.close()

    atexit.register(end)
    # Before the queues are closed (priority 10), by which the workers are told to stop.
    multiprocessing.util.Finalize(batches, end, exitpriority=20)


def _init_worker(worker: int) -> None:
    """One thread each, and signals left to the main process."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SIGTERM_GRACE_SECONDS))
