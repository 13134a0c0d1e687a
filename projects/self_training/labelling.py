"""Labelling images with a teacher: one label a query, duplicates removed, best first.

The teacher is fixed and labels each image once, at the size of its config's test-time resizing. An
image's boxes go into a `BoxStore` in the frame of the original image, with their scores; which of
them become targets is chosen when the store is read (`predet.data.pseudo_labels`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torchvision.ops import nms

from predet.data.box_store import BoxRow
from predet.data.box_store_writer import BoxStoreWriter
from predet.data.dataset import DetectionDataset
from predet.data.images import BadSampleError
from predet.data.workers import Mapper, TestSamples, end_at_exit, start_reading


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
    samples = TestSamples(dataset, mapper, range(len(dataset)), on_bad_sample)
    indices = [batch.indices for batch in plan]
    batches = (
        loaded for loaded in start_reading(samples, dataset, num_workers, batch_sampler=indices)
    )
    end_at_exit(batches)
    rows: list[BoxRow] = []
    skipped: dict[str, str] = {}
    for batch, loaded in zip(plan, batches, strict=True):
        good = [item.sample for item in loaded if item.sample is not None]
        for item in loaded:
            if item.bad_sample is not None:
                raise BadSampleError(item.bad_sample)
            skipped.update(item.skipped)
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
