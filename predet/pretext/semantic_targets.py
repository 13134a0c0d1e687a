"""What supervises the class of a pre-training box: the second of the two choices of pre-training.

"Revisiting DETR Pre-training" (arXiv 2308.01300) finds that the class target matters as much as
where the boxes come from. A semantic target is a callable that takes a batch and returns one with
the classes to learn; the detector's ordinary losses do the rest. The batch given is not changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from predet.d2 import Instances

Batch = list[dict[str, Any]]


class SemanticTarget(Protocol):
    """Gives the boxes of a batch the classes that pre-training teaches."""

    def __call__(self, batch: Batch) -> Batch:
        """Batch dicts with `instances.gt_classes` (N,) -> the same with classes to learn."""

    def taught_classes(self, class_names: Sequence[str]) -> tuple[str, ...]:
        """What the class head knows afterwards, where the data has these classes.

        It is written into checkpoints: fine-tuning with `train.reinit=auto` keeps a class head
        that knows the classes of its data, in their order, and begins anew with any other.
        """


class KeepClasses:
    """The class that came with the box: a teacher's pseudo-class, or the annotated one."""

    def __call__(self, batch: Batch) -> Batch:
        return batch

    def taught_classes(self, class_names: Sequence[str]) -> tuple[str, ...]:
        return tuple(class_names)


class Objectness:
    """Only "there is an object": every box is of class 0, whatever the detector's other classes.

    A class head learned so does not know the classes of the data, whatever their names.
    """

    def __call__(self, batch: Batch) -> Batch:
        return [{**sample, "instances": _of_class_zero(sample["instances"])} for sample in batch]

    def taught_classes(self, class_names: Sequence[str]) -> tuple[str, ...]:
        return ("object",)


def _of_class_zero(instances: Instances) -> Instances:
    fields = dict(instances.get_fields())
    fields["gt_classes"] = torch.zeros_like(fields["gt_classes"])
    return Instances(instances.image_size, **fields)
