"""Semantic targets change classes and nothing else."""

from __future__ import annotations

import torch

from predet.d2 import Boxes, Instances
from predet.pretext.semantic_targets import KeepClasses, Objectness


def make_batch() -> list[dict]:
    instances = Instances(
        (8, 8),
        gt_boxes=Boxes(torch.tensor([[0.0, 0, 4, 4], [1, 1, 5, 5]])),
        gt_classes=torch.tensor([3, 1]),
        scores=torch.tensor([0.5, 0.25]),
    )
    empty = Instances((8, 8), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0).long())
    return [{"image": torch.ones(3, 8, 8), "instances": i, "key": "a"} for i in (instances, empty)]


def test_keeping_the_classes_gives_the_batch_itself() -> None:
    batch = make_batch()
    assert KeepClasses()(batch) is batch


def test_objectness_is_class_zero_with_all_other_fields_kept() -> None:
    batch = make_batch()
    changed = Objectness()(batch)
    assert changed[0]["instances"].gt_classes.tolist() == [0, 0]
    assert changed[0]["instances"].gt_classes.dtype == torch.int64
    assert changed[0]["instances"].scores.tolist() == [0.5, 0.25]
    assert changed[0]["instances"].gt_boxes.tensor.equal(batch[0]["instances"].gt_boxes.tensor)
    assert changed[0]["image"] is batch[0]["image"]
    assert len(changed[1]["instances"]) == 0
    assert batch[0]["instances"].gt_classes.tolist() == [3, 1]


def test_targets_tell_what_the_class_head_learns():
    assert KeepClasses().taught_classes(["cat", "dog"]) == ("cat", "dog")
    assert Objectness().taught_classes(["cat", "dog"]) == ("object",)
