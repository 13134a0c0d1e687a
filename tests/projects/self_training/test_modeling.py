"""Self-training is the detector's own losses on the pseudo-labels, and leaves only the detector."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from predet.checkpoint import load_detector
from predet.d2 import Boxes, Instances
from predet.pretext.semantic_targets import KeepClasses, Objectness
from predet.projects.self_training import SelfTraining


def make_batch() -> list[dict[str, Any]]:
    """Two images with pseudo-labels and one without."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for index, count in enumerate((3, 0, 7)):
        start = torch.rand(count, 2, generator=generator) * 30
        boxes = torch.cat([start, start + 5 + torch.rand(count, 2, generator=generator) * 20], 1)
        classes = torch.randint(1, 5, (count,), generator=generator)
        batch.append(
            {
                "image": torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8, generator=generator),
                "instances": Instances((64, 96), gt_boxes=Boxes(boxes), gt_classes=classes),
                "height": 64,
                "width": 96,
                "file_name": f"{index}.jpg",
            }
        )
    return batch


def test_pseudo_classes_are_ordinary_targets(detector: nn.Module) -> None:
    model = SelfTraining(
        detector=detector, semantic_target=KeepClasses(), freeze_backbone=False
    ).train()
    losses = model(make_batch())
    expected = copy.deepcopy(detector).train()(make_batch())
    assert list(losses) == list(expected)
    assert {"loss_class", "loss_bbox", "loss_giou"} <= set(losses)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
    sum(losses.values()).backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in detector.class_head.parameters()
    )


def test_objectness_teaches_class_zero_and_leaves_the_batch_alone(detector: nn.Module) -> None:
    batch = make_batch()
    model = SelfTraining(
        detector=detector, semantic_target=Objectness(), freeze_backbone=False
    ).train()
    losses = model(batch)
    zeroed = make_batch()
    for sample in zeroed:
        sample["instances"].gt_classes = torch.zeros_like(sample["instances"].gt_classes)
    expected = copy.deepcopy(detector).train()(zeroed)
    other = copy.deepcopy(detector).train()(batch)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
    assert not torch.isclose(other["loss_class"], expected["loss_class"])
    assert batch[2]["instances"].gt_classes.min() >= 1


def test_in_evaluation_it_is_the_detector(detector: nn.Module) -> None:
    model = SelfTraining(
        detector=detector, semantic_target=Objectness(), freeze_backbone=False
    ).eval()
    with torch.no_grad():
        got, expected = model(make_batch()), detector(make_batch())
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(
            one["instances"].pred_boxes.tensor, other["instances"].pred_boxes.tensor
        )
        torch.testing.assert_close(one["instances"].scores, other["instances"].scores)
    assert model.device.type == "cpu"
    assert model.num_classes == 5


def test_only_the_detector_transfers(detector: nn.Module) -> None:
    model = SelfTraining(detector=detector, semantic_target=KeepClasses(), freeze_backbone=False)
    assert all(name.startswith("detector.") for name in model.state_dict())
    fresh = copy.deepcopy(detector)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    load_detector(fresh, {"model": model.state_dict()})
    for name, value in detector.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[name], value)


@pytest.mark.parametrize(
    ("freeze_backbone", "pretrained", "frozen"),
    [("auto", True, True), ("auto", False, False), (True, False, True), (False, True, False)],
)
def test_the_backbone_is_frozen_iff_it_is_pretrained_or_by_hand(
    detector: nn.Module, freeze_backbone: Any, pretrained: bool, frozen: bool
) -> None:
    detector.backbone.pretrained = pretrained
    model = SelfTraining(
        detector=detector, semantic_target=KeepClasses(), freeze_backbone=freeze_backbone
    ).train()
    assert {p.requires_grad for p in detector.backbone.parameters()} == {not frozen}
    before = copy.deepcopy(detector.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sum(model(make_batch()).values()).backward()
    optimizer.step()
    changed = {
        name for name, value in detector.state_dict().items() if not value.equal(before[name])
    }
    assert any(name.startswith("backbone.") for name in changed) is not frozen
    assert any(name.startswith("class_head.") for name in changed)
    assert any(name.startswith("transformer.") for name in changed)


def test_statistics_of_a_frozen_backbone_stay(detector: nn.Module) -> None:
    detector.backbone.bn1 = nn.BatchNorm2d(64)
    model = SelfTraining(detector=detector, semantic_target=KeepClasses(), freeze_backbone=True)
    model.train()
    model(make_batch())
    assert detector.backbone.bn1.running_mean.abs().sum() == 0
    assert detector.training
    free = SelfTraining(detector=detector, semantic_target=KeepClasses(), freeze_backbone=False)
    free.train()(make_batch())
    assert detector.backbone.bn1.running_mean.abs().sum() > 0


def test_undecided_or_misspelt_freezing_is_refused(detector: nn.Module) -> None:
    with pytest.raises(ValueError, match="True, False or 'auto', got 'yes'"):
        SelfTraining(detector=detector, semantic_target=KeepClasses(), freeze_backbone="yes")
    detector.backbone = nn.Sequential()
    with pytest.raises(ValueError, match="Sequential does not tell whether its weights are pre-t"):
        SelfTraining(detector=detector, semantic_target=KeepClasses())
