"""Two views of noise images and the method around a small detector, for all tests here."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from predet.d2 import Boxes, Instances
from predet.modeling.backbone import ResNet
from predet.pretext.semantic_targets import KeepClasses
from predet.projects.align_det import AlignDet
from predet.projects.torchvision_detectors import FCOS, FasterRCNN, MaskRCNN, RetinaNet


def two_views(batch: list[dict], seed: int = 0) -> list[dict]:
    """The images of a batch and their mirror images, with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for sample in batch:
        image, instances = sample["image"], sample["instances"]
        noise = torch.randint(-9, 10, image.shape, generator=generator)
        mirrored = (image.flip(2) + noise).clamp(0, 255).to(torch.uint8)
        other = Instances(instances.image_size)
        boxes = instances.gt_boxes.tensor[:, [2, 1, 0, 3]].clone()
        boxes[:, [0, 2]] = instances.image_size[1] - boxes[:, [0, 2]]
        other.gt_boxes, other.gt_classes = Boxes(boxes), instances.gt_classes.clone()
        views = [{"image": image, "instances": instances}, {"image": mirrored, "instances": other}]
        made.append({**sample, "views": views})
    return made


@pytest.fixture
def views(batch):
    """`views(sizes, counts, seed)` makes a batch; see `build_batch` of the folder above."""

    def make(*arguments: Any, **options: Any) -> list[dict]:
        return two_views(batch(*arguments, **options))

    return make


@pytest.fixture
def method():
    """`method(detector, **options)` puts it into AlignDet, with the backbone trained."""

    def make(detector: torch.nn.Module, **options: Any) -> AlignDet:
        torch.manual_seed(1)
        given = {"freeze_backbone": False, "semantic_target": KeepClasses(), **options}
        return AlignDet(detector=copy.deepcopy(detector), **given).train()

    return make


KINDS = {"retinanet": RetinaNet, "fcos": FCOS, "faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}


def build_pyramid_detector(name: str, num_classes: int = 1) -> torch.nn.Module:
    """One of torchvision's detectors, small, its backbone trained."""
    dense = name in ("retinanet", "fcos")
    backbone = ResNet(
        depth=18,
        weights=None,
        norm="gn",
        freeze_at=0,
        out_stages=(3, 4, 5) if dense else (2, 3, 4, 5),
    )
    small = {"representation_size": 32, "proposals_train": 100, "proposals_test": 50}
    return KINDS[name](
        backbone=backbone, num_classes=num_classes, neck_channels=64, **({} if dense else small)
    )


@pytest.fixture
def pyramid_detector():
    """`pyramid_detector(name, num_classes)` builds a detector of torchvision."""
    return build_pyramid_detector
