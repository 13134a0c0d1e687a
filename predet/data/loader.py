"""Loaders of training and test batches.

A batch is a list of the mapper's dicts. Which images a batch holds, and by which random numbers
they are augmented, is in `sampling`; how they are read is in `workers`. No global random state is
touched.

What happens with a sample that cannot be read (`BadSampleError` of the mapper) is the policy
`on_bad_sample`:

- "error": stop, naming file and reason.
- "skip", training: the image is replaced by the next readable one of the stream, beginning one
  step later (`sampling.replacement_positions`); a rank's number of batches and of images a batch
  never changes. If a whole epoch cannot be read, the run stops.
- "skip", test: the image is left out of the batches, so that it counts as an image without
  detections: its objects are missed, none is excused.

Either way of "skip" is counted, and the first time a file is met it is named in the log.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from predet.d2 import comm
from predet.data import sampling
from predet.data.dataset import DetectionDataset
from predet.data.images import BadSampleError
from predet.data.mixing import train_stream
from predet.data.workers import (
    Loaded,
    Mapper,
    TestSamples,
    TrainSamples,
    end_at_exit,
    start_reading,
)

_logger = logging.getLogger(__name__)

_POLICIES = ("skip", "error")


class BadSamples:
    """What was skipped: for each key the reason and how often it was met."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}
        self.counts: Counter[str] = Counter()

    def add(self, key: str, reason: str) -> None:
        if key not in self.reasons:
            _logger.warning("skipped %s: %s", key, reason)
            self.reasons[key] = reason
        self.counts[key] += 1

    def __len__(self) -> int:
        """The number of different files."""
        return len(self.reasons)

    def summary(self, max_files: int = 20) -> str:
        """A few lines for the log: how many, and the first files with their reasons."""
        if not self.reasons:
            return "no samples were skipped"
        lines = [
            f"{len(self)} files could not be read and were skipped {self.counts.total()} times"
        ]
        for key in list(self.reasons)[:max_files]:
            lines.append(f"  {key}: {self.reasons[key]} ({self.counts[key]} times)")
        if len(self) > max_files:
            lines.append(f"  and {len(self) - max_files} more files")
        return "\n".join(lines)


class MissingBoxes:
    """How often a box source gave fewer boxes than asked for."""

    def __init__(self) -> None:
        self.samples = self.short = self.boxes = 0
        self.first = ""

    def add(self, key: str, missing: int) -> None:
        self.samples += 1
        if missing:
            if not self.short:
                self.first = key
                _logger.warning("%s has %d boxes fewer than asked for", key, missing)
            self.short += 1
            self.boxes += missing

    def summary(self) -> str:
        """One line for the log."""
        return (
            f"{self.short} of {self.samples} samples had fewer boxes than asked for, {self.boxes} "
            f"boxes in all; the first was {self.first}"
        )


class TrainLoader:
    """Batches of a training run, from any step on. See `build_train_loader`."""

    def __init__(
        self,
        *,
        dataset: DetectionDataset,
        mapper: Mapper,
        total_batch_size: int,
        num_workers: int,
        seed: int,
        on_bad_sample: str = "skip",
    ):
        _check_policy(on_bad_sample)
        if getattr(mapper, "needs_boxes", False) and not len(dataset.boxes):
            raise ValueError(
                f"data set {dataset.name!r} ({dataset.root}) has no annotations, but this mapper "
                "trains on the boxes of the data set"
            )
        check = getattr(mapper, "check", None)
        if check is not None:
            check(dataset)
        self.dataset, self.mapper = dataset, mapper
        self.total_batch_size, self.num_workers = total_batch_size, num_workers
        self.on_bad_sample = on_bad_sample
        self.stream = train_stream(dataset, seed=seed)
        self._bad_samples = BadSamples()
        self._missing_boxes = MissingBoxes()

    def batches(
        self, start_step: int, accumulation_steps: int = 1
    ) -> Iterator[list[dict[str, Any]]]:
        """This rank's micro-batches of step `start_step` and all that follow, without end.

        Each step is `accumulation_steps` lists of total_batch_size / (accumulation_steps *
        processes) dicts. Closing the iterator ends its workers.

        Raises:
            ValueError: The total batch size does not divide, or a whole epoch cannot be read.
            BadSampleError: Policy "error", and a sample cannot be read.
        """
        plan = functools.partial(
            sampling.micro_batch_positions,
            total_batch_size=self.total_batch_size,
            accumulation_steps=accumulation_steps,
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
        )
        plan(0, 0)  # refuses what does not divide now, not when the first batch is asked for
        samples = TrainSamples(
            self.dataset, self.mapper, self.stream, self.total_batch_size, self.on_bad_sample
        )
        positions = _PositionBatches(plan, start_step, accumulation_steps)
        loaded = start_reading(samples, self.dataset, self.num_workers, batch_sampler=positions)
        batches = (self._counted(_unpack(batch, self._bad_samples)) for batch in loaded)
        end_at_exit(batches)
        return batches

    def bad_samples(self) -> BadSamples:
        """What this rank has skipped up to now."""
        return self._bad_samples

    def missing_boxes(self) -> MissingBoxes:
        """What this rank's samples of pre-training have lacked up to now."""
        return self._missing_boxes

    def _counted(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for sample in batch:
            if "boxes_missing" in sample:
                self._missing_boxes.add(sample["key"], sample["boxes_missing"])
        return batch


class TestLoader:
    """This rank's share of a data set, once, in order. See `build_test_loader`."""

    __test__ = False  # the name would make pytest collect it

    def __init__(
        self,
        *,
        dataset: DetectionDataset,
        mapper: Mapper,
        batch_size: int = 1,
        num_workers: int = 0,
        on_bad_sample: str = "skip",
    ):
        _check_policy(on_bad_sample)
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        self.dataset, self.mapper = dataset, mapper
        self.batch_size, self.num_workers = batch_size, num_workers
        self.on_bad_sample = on_bad_sample
        self._bad_samples = BadSamples()

    def __len__(self) -> int:
        """Batches of this rank; skipped samples can make them fewer."""
        return -(-len(self._share()) // self.batch_size)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        self._bad_samples = BadSamples()
        share = self._share()
        samples = TestSamples(self.dataset, self.mapper, share, self.on_bad_sample)
        loaded = start_reading(samples, self.dataset, self.num_workers, batch_size=self.batch_size)
        batches = self._read(loaded, share)
        end_at_exit(batches)
        return batches

    def _read(
        self, loaded: Iterator[list[Loaded]], share: range
    ) -> Generator[list[dict[str, Any]], None, None]:
        num_read = 0
        for samples in loaded:
            batch = _unpack(samples, self._bad_samples)
            num_read += len(batch)
            if batch:
                yield batch
        if self._bad_samples:
            _logger.warning(
                "data set %r: %s; they count as images without detections",
                self.dataset.name,
                self._bad_samples.summary(),
            )
        if len(share) == len(self.dataset) and not num_read:
            raise ValueError(
                f"data set {self.dataset.name!r}: none of its {len(share)} images can be read: "
                f"{self._bad_samples.summary(max_files=3)}"
            )

    def _share(self) -> range:
        return sampling.contiguous_share(
            len(self.dataset), rank=comm.get_rank(), world_size=comm.get_world_size()
        )

    def bad_samples(self) -> BadSamples:
        """What this rank has skipped in the latest pass."""
        return self._bad_samples


def build_train_loader(
    *,
    dataset: DetectionDataset,
    mapper: Mapper,
    total_batch_size: int,
    num_workers: int,
    seed: int,
    on_bad_sample: str = "skip",
) -> TrainLoader:
    """Make the loader of a training run.

    Args:
        mapper: Picklable where workers are spawned. If it has an attribute `needs_boxes` that is
            true, a data set without any box is refused; a method `check` is given the data set.
        total_batch_size: Images in an optimiser step, over all processes and micro-batches; may
            exceed the number of images, for the stream goes on into the next epoch.
        num_workers: Processes that read; 0 reads in this one. Changes no batch.
        on_bad_sample: "skip" or "error", as the module says.

    Raises:
        ValueError: An argument is out of range, or the data set has no images or no boxes.
    """
    return TrainLoader(
        dataset=dataset,
        mapper=mapper,
        total_batch_size=total_batch_size,
        num_workers=num_workers,
        seed=seed,
        on_bad_sample=on_bad_sample,
    )


def build_test_loader(
    *,
    dataset: DetectionDataset,
    mapper: Mapper,
    batch_size: int = 1,
    num_workers: int = 0,
    on_bad_sample: str = "skip",
) -> TestLoader:
    """Make the loader of an evaluation: each rank a contiguous share, nothing padded or repeated.

    Args:
        batch_size: Images in a batch of one process.
        on_bad_sample: "skip" or "error", as the module says.

    Raises:
        ValueError: An argument is out of range.
    """
    return TestLoader(
        dataset=dataset,
        mapper=mapper,
        batch_size=batch_size,
        num_workers=num_workers,
        on_bad_sample=on_bad_sample,
    )


class _PositionBatches:
    """Endless batch sampler: the stream positions of each micro-batch."""

    def __init__(self, plan: Callable[[int, int], range], start_step: int, micro_steps: int):
        self.plan, self.start_step, self.micro_steps = plan, start_step, micro_steps

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start_step
        while True:
            for micro_step in range(self.micro_steps):
                yield list(self.plan(step, micro_step))
            step += 1


def _unpack(batch: Iterable[Loaded], bad_samples: BadSamples) -> list[dict[str, Any]]:
    samples = []
    for loaded in batch:
        for key, reason in loaded.skipped:
            bad_samples.add(key, reason)
        if loaded.bad_sample is not None:
            raise BadSampleError(loaded.bad_sample)
        if loaded.exhausted is not None:
            raise ValueError(loaded.exhausted)
        if loaded.sample is not None:
            samples.append(loaded.sample)
    return samples


def _check_policy(on_bad_sample: str) -> None:
    if on_bad_sample not in _POLICIES:
        raise ValueError(f"on_bad_sample must be one of {_POLICIES}, got {on_bad_sample!r}")
