"""H-Deformable DETR as student, and what goes in and out of it by `load_detector`."""

from __future__ import annotations

import pytest
import torch

from predet.checkpoint import load_detector
from predet.pretext.semantic_targets import KeepClasses, Objectness
from predet.projects.self_training import SelfTraining


def test_pre_training_and_fine_tuning(detector, batch):
    torch.manual_seed(0)
    student = SelfTraining(
        detector=detector("h_deformable"), semantic_target=KeepClasses(), freeze_backbone=True
    ).train()
    losses = student(batch())
    assert "loss_bbox_one_to_many" in losses
    sum(losses.values()).backward()
    torch.optim.SGD([p for p in student.parameters() if p.grad is not None], lr=0.01).step()
    fine_tuned = detector("h_deformable")
    load_detector(fine_tuned, {"model": student.state_dict()}, reinit=("class_head",))
    fresh = {name for name in fine_tuned.state_dict() if name.startswith("class_head")}
    for name, value in fine_tuned.state_dict().items():
        assert name in fresh or torch.equal(value, student.detector.state_dict()[name]), name
    assert all(value.isfinite() for value in fine_tuned(batch()).values())


def test_objects_without_classes(detector, batch):
    student = SelfTraining(
        detector=detector("h_deformable"), semantic_target=Objectness(), freeze_backbone=False
    )
    assert all(value.isfinite() for value in student(batch()).values())


def test_from_two_stage_deformable_detr(detector):
    """Only the learned content is new, and has to be named."""
    two_stage, model = detector("deformable_two_stage"), detector("h_deformable")
    with pytest.raises(ValueError, match=r"missing: queries\.query_embed\.weight \(50, 64\)"):
        load_detector(model, two_stage.state_dict())
    report = load_detector(model, two_stage.state_dict(), reinit=("queries.query_embed",))
    assert report.reinitialised == ("queries.query_embed.weight",)
    assert report.dropped == ()


def test_labels_come_from_the_first_group(detector, batch):
    model = detector("h_deformable").eval()
    with torch.no_grad():
        assert [len(instances) for instances in model.label(batch())] == [20, 20, 20]
