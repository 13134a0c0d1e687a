"""What the criterion compares predictions with: boxes and classes of a batch of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from predet.ops.boxes import normalize_boxes


class Targets(NamedTuple):
    """Targets of all images of a batch, one image after the other."""

    classes: Tensor  # (M,) int64, contiguous
    boxes: Tensor  # (M, 4) fp32, cxcywh in [0, 1] of the image
    counts: tuple[int, ...]  # per image; sums to M
    # Boxes of each image of the whole optimiser step, a row for each part (micro-batch of a
    # process), -1 where a part has fewer images; this batch is one of the parts. (P, N) int64.
    # None: not known, the losses count what they see.
    step_counts: Tensor | None = None

    def of_class_zero(self) -> Targets:
        """The same boxes, all labelled 0: targets of the class-agnostic encoder head."""
        return self._replace(classes=torch.zeros_like(self.classes))


def prepare_targets(
    batch: Sequence[Mapping[str, Any]], num_classes: int, device: torch.device
) -> Targets:
    """Collect `instances` of a batch and normalise their boxes by the size of the resized image.

    Args:
        batch: dicts with "instances": `gt_boxes` absolute xyxy in the frame of "image",
            `gt_classes` in [0, num_classes); "step_counts", where the trainer gives it, goes into
            the targets. Who changes the number of boxes of a batch must leave it out.
        num_classes: contiguous classes of the detector.
        device: where the targets go.

    Raises:
        ValueError: an image has no instances, a class out of range, or a box that is not finite;
            the numbers of boxes are not those of "step_counts".
    """
    classes, boxes = [], []
    for sample, image_classes, image_boxes in checked_instances(batch, num_classes):
        classes.append(image_classes)
        boxes.append(normalize_boxes(image_boxes, tuple(sample["image"].shape[-2:])))
    counts = tuple(len(image_classes) for image_classes in classes)
    step_counts = batch[0].get("step_counts") if batch else None
    if step_counts is not None and not torch.compiler.is_compiling():
        _check_counts(counts, step_counts)
    if step_counts is not None:
        step_counts = step_counts.to(device, non_blocking=True)
    # One copy for the whole batch instead of two for every image.
    return Targets(
        torch.cat(classes).to(device, non_blocking=True),
        torch.cat(boxes).to(device, non_blocking=True),
        counts,
        step_counts,
    )


def checked_instances(
    batch: Sequence[Mapping[str, Any]], num_classes: int
) -> Iterator[tuple[Mapping[str, Any], Tensor, Tensor]]:
    """Each sample with its classes (N,) int64 and boxes (N, 4) fp32 absolute xyxy, all valid.

    Raises:
        ValueError: an image has no instances, a class out of range, or a box that is not finite.
    """
    for index, sample in enumerate(batch):
        where = sample.get("file_name", f"image {index} of the batch")
        if "instances" not in sample:
            raise ValueError(f"{where}: training needs 'instances', got keys {sorted(sample)}")
        instances = sample["instances"]
        classes = _checked_classes(instances.gt_classes, num_classes, where)
        boxes = instances.gt_boxes.tensor.float()
        if not boxes.isfinite().all():
            raise ValueError(f"{where}: a box of the annotation is not finite: {boxes}")
        yield sample, classes, boxes


def _check_counts(counts: tuple[int, ...], step_counts: Tensor) -> None:
    if list(counts) not in [[n for n in row if n >= 0] for row in step_counts.tolist()]:
        raise ValueError(
            f"the images of a batch have {list(counts)} boxes, but the step was counted with "
            f"{step_counts.tolist()}: who changes the number of boxes of a batch must leave its "
            "'step_counts' out"
        )


def _checked_classes(classes: Tensor, num_classes: int, where: str) -> Tensor:
    classes = classes.to(torch.int64)
    outside = classes[(classes < 0) | (classes >= num_classes)]
    if len(outside):
        raise ValueError(
            f"{where}: class {int(outside[0])} is not among the {num_classes} classes of the model "
            f"(0 to {num_classes - 1})"
        )
    return classes
