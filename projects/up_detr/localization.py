"""Does UP-DETR find its patches? Overlap of what it points at with where the patch was cut.

For every patch of held-out images the most confident query of its group is asked for its box. That
proves something only beside controls: the same images with patches of other images (a model that
ignores its patches does as well), a model that was never trained, and one box for all patches.

Legend: P patches of an image, all images of a data set one after the other: T.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from predet.data.dataset import DetectionDataset
from predet.data.images import BadSampleError
from predet.data.pretext_mapper import PretextMapper
from predet.ops.boxes import box_iou
from predet.projects.up_detr.modeling import UPDETR

logger = logging.getLogger(__name__)

Batch = Sequence[Mapping[str, Any]]


class Localization(NamedTuple):
    """How well patches were found."""

    iou: Tensor  # (T,) of the found box and the patch's own
    scores: Tensor  # (T,) confidence of the query that was asked

    def summary(self) -> dict[str, float]:
        """Means over patches."""
        return {
            "iou": self.iou.mean().item(),
            "found": (self.iou >= 0.5).double().mean().item(),
            "score": self.scores.mean().item(),
        }


class Controls(NamedTuple):
    """A model beside what it has to beat, on the same patches."""

    own: Localization  # patches of the image itself
    swapped: Localization  # patches of another image
    untrained: Localization  # the model before training
    mean_box: Localization  # one box for all patches


def with_controls(model: UPDETR, untrained: UPDETR, batches: Sequence[Batch]) -> Controls:
    """Measure a model and its controls.

    Args:
        model: trained, in evaluation mode.
        untrained: the same model before training, in evaluation mode.
        batches: as of `localization`; of at least two images each.
    """
    return Controls(
        localization(model, batches),
        localization(model, batches, swap=True),
        localization(untrained, batches),
        mean_boxes(batches),
    )


def cut_patches(
    dataset: DetectionDataset,
    mapper: PretextMapper,
    *,
    seed: int,
    num_images: int | None = None,
    batch_size: int = 16,
) -> Iterator[list[dict[str, Any]]]:
    """Images of a data set with patches that depend on `seed` and the image alone.

    A last image by itself joins the batch before it, so that patches can be swapped. Images that
    cannot be read or are too small are left out, and named in the log.

    Args:
        dataset: held-out images.
        mapper: with a `PatchMaker`.
        seed: of the patches, and of the images if not all are taken.
        num_images: how many images; None takes all.
        batch_size: images of a batch.

    Raises:
        ValueError: no image is left.
    """
    chosen = np.random.default_rng(seed).permutation(len(dataset))[:num_images]
    samples = []
    for index in sorted(chosen.tolist()):
        record = dataset[index]
        try:
            samples.append(mapper(record, np.random.default_rng([seed, record.image_id])))
        except BadSampleError as error:
            logger.warning("left out: %s", error)
            continue
        if len(samples) > batch_size + 1:
            yield samples[:batch_size]
            samples = samples[batch_size:]
    if not samples:  # a batch that was given out has left others behind
        raise ValueError(f"no patches can be cut out of the {len(chosen)} images of {dataset.name}")
    yield samples


def localization(model: UPDETR, batches: Iterable[Batch], *, swap: bool = False) -> Localization:
    """Let a model find the patches of images.

    Args:
        model: in evaluation mode.
        batches: of a `PretextMapper` with a `PatchMaker`; at least two images each if `swap`.
        swap: give each image the patches of another one, as `swapped` does.
    """
    ious, scores = [], []
    for batch in batches:
        found = model.localize(swapped(batch) if swap else batch)
        for sample, image in zip(batch, found, strict=True):
            boxes = sample["instances"].gt_boxes.tensor.to(image.boxes.device)
            count = min(len(boxes), len(image.boxes))  # another image may have fewer patches
            ious.append(box_iou(image.boxes[:count], boxes[:count]).cpu())
            scores.append(image.scores[:count].cpu())
    return Localization(torch.cat(ious), torch.cat(scores))


def mean_boxes(batches: Iterable[Batch]) -> Localization:
    """One box for all patches: the mean of all their boxes, as parts of their images.

    The mean is over these very boxes, so it knows more of them than a model can.
    """
    parts, sizes = [], []
    for sample in (sample for batch in batches for sample in batch):
        size = torch.tensor([*sample["image"].shape[:0:-1]] * 2)  # width, height, twice
        boxes = sample["instances"].gt_boxes.tensor
        parts.append(boxes / size)
        sizes.append(size.expand(len(boxes), 4))
    boxes, size = torch.cat(parts), torch.cat(sizes)
    iou = box_iou(boxes.mean(dim=0) * size, boxes * size)
    return Localization(iou, torch.zeros(len(iou)))


def swapped(batch: Batch) -> list[dict[str, Any]]:
    """Each image with the patches of the one before it, and its own boxes.

    Raises:
        ValueError: there is only one image.
    """
    if len(batch) < 2:
        raise ValueError("patches can be swapped between two images or more, got one")
    others = [batch[-1], *batch[:-1]]
    return [
        {**sample, "patches": other["patches"]} for sample, other in zip(batch, others, strict=True)
    ]
