"""Labelling images with a teacher: one label a query, duplicates removed, best first.

The teacher is fixed and labels each image once, at the size of its config's test-time resizing. An
image's boxes go into a `BoxStore` in the frame of the original image, with their scores; which of
them become targets is chosen when the store is read (`predet.data.pseudo_labels`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.ops import nms

from predet.data.box_store import BoxRow
from predet.data.box_store_writer import BoxStoreWriter
from predet.data.dataset import DetectionDataset, Record
from predet.data.images import BadSampleError
from predet.data.sampling import test_rng

Mapper = Callable[[Record, np.random.Generator], dict[str, Any]]


@torch.no_grad()
def label_images(
    detector: nn.Module,
    batch: Sequence[dict[str, Any]],
    *,
    nms_iou: float | None = 0.9,
    keep: int | None = None,
) -> list[BoxRow]:
    """The teacher's boxes of a batch, best first.

    Args:
        detector: has `label(batch)`, which gives each image one box and class a query.
        batch: as the test-time mapper makes it.
        nms_iou: of two boxes that overlap more than this only the better one is kept, whatever
            their classes; None keeps both.
        keep: the most boxes of an image; None keeps all.

    Raises:
        ValueError: a box or score is not finite.
    """
    return [
        _row(sample, found, nms_iou, keep)
        for sample, found in zip(batch, detector.label(batch), strict=True)
    ]


def _row(sample: dict[str, Any], found: Any, nms_iou: float | None, keep: int | None) -> BoxRow:
    boxes, scores = found.pred_boxes.tensor.float(), found.scores.float()
    if not (boxes.isfinite().all() and scores.isfinite().all()):
        raise ValueError(f"{sample['file_name']}: the teacher's boxes or scores are not finite")
    solid = (boxes[:, 2:] > boxes[:, :2]).all(dim=1).nonzero()[:, 0]
    if nms_iou is None:
        order = scores[solid].argsort(descending=True, stable=True)
    else:
        order = nms(boxes[solid], scores[solid], nms_iou)
    chosen = solid[order[:keep]]
    return BoxRow(
        key=sample["key"],
        height=sample["height"],
        width=sample["width"],
        boxes=boxes[chosen].cpu().numpy(),
        scores=scores[chosen].cpu().numpy(),
        classes=found.pred_classes[chosen].cpu().numpy(),
    )


def label_shards(
    detector: nn.Module,
    dataset: DetectionDataset,
    writer: BoxStoreWriter,
    shards: Sequence[int],
    *,
    mapper: Mapper,
    batch_size: int,
    num_workers: int = 0,
    nms_iou: float | None = 0.9,
    keep: int | None = None,
    on_bad_sample: str = "skip",
) -> Iterator[int]:
    """Label the images of some shards and write each shard when it is whole.

    A batch never holds images of two shards, so that a shard's content does not depend on which
    others are made in the same run.

    Args:
        detector: in evaluation mode, on its device.
        dataset: its keys are the writer's, in the same order.
        writer: of the store.
        shards: which to make.
        mapper: the test-time mapper of the teacher's config.
        batch_size: images the teacher sees at once.
        num_workers: processes that read images.
        nms_iou, keep: see `label_images`.
        on_bad_sample: "skip" lists an image that cannot be read in the store; "error" stops.

    Yields:
        After each batch, how many images it held.

    Raises:
        BadSampleError: policy "error", and an image cannot be read.
    """
    plan = _plan(writer, shards, batch_size)
    loader = DataLoader(
        _Images(dataset, mapper),
        batch_sampler=[batch.indices for batch in plan],
        num_workers=num_workers,
        collate_fn=list,
        worker_init_fn=_one_thread,
        generator=torch.Generator(),  # without it, one number of the global generator is used up
    )
    rows: list[BoxRow] = []
    skipped: dict[str, str] = {}
    for batch, loaded in zip(plan, loader, strict=True):
        good = [item.sample for item in loaded if item.sample is not None]
        for item in loaded:
            if item.problem is not None and on_bad_sample == "error":
                raise BadSampleError(item.problem)
            if item.problem is not None:
                skipped[item.key] = item.problem
        if good:
            rows += label_images(detector, good, nms_iou=nms_iou, keep=keep)
        if batch.completes_shard:
            writer.write_shard(batch.shard, rows, skipped=skipped)
            rows, skipped = [], {}
        yield len(batch.indices)


class _Batch(NamedTuple):
    """A batch of one shard, in order."""

    shard: int
    indices: list[int]
    completes_shard: bool


def _plan(writer: BoxStoreWriter, shards: Sequence[int], batch_size: int) -> list[_Batch]:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    plan = []
    for shard in shards:
        part = writer.shard_slice(shard)
        for start in range(part.start, part.stop, batch_size):
            stop = min(start + batch_size, part.stop)
            plan.append(_Batch(shard, list(range(start, stop)), stop == part.stop))
    return plan


class _Loaded(NamedTuple):
    """A sample, or why there is none. Failures cross processes as text."""

    key: str
    sample: dict[str, Any] | None
    problem: str | None


class _Images(Dataset[_Loaded]):
    """Index of the data set -> what the mapper makes of it."""

    def __init__(self, dataset: DetectionDataset, mapper: Mapper) -> None:
        self.dataset, self.mapper = dataset, mapper

    def __getitem__(self, index: int) -> _Loaded:
        record = self.dataset[index]
        try:
            return _Loaded(record.key, self.mapper(record, test_rng(record.image_id)), None)
        except BadSampleError as error:
            return _Loaded(record.key, None, str(error))


def _one_thread(_worker: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
