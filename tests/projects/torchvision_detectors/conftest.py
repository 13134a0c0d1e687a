"""Small detectors of torchvision in predet, and the same ones as torchvision builds them."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torchvision
import torchvision.models.detection as tv
from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from predet.d2 import BitMasks, Boxes, Instances
from predet.modeling.backbone import ResNet
from predet.projects.torchvision_detectors import FCOS, FasterRCNN, MaskRCNN, RetinaNet

NAMES = ("retinanet", "fcos", "faster_rcnn", "mask_rcnn")
NUM_CLASSES = 3
CHANNELS = 64
_KINDS = {
    "retinanet": (RetinaNet, tv.RetinaNet),
    "fcos": (FCOS, tv.FCOS),
    "faster_rcnn": (FasterRCNN, tv.FasterRCNN),
    "mask_rcnn": (MaskRCNN, tv.MaskRCNN),
}


def is_dense(name: str) -> bool:
    return name in ("retinanet", "fcos")


# Of two-stage detectors where torchvision's defaults do not matter: quicker.
SMALL = {"representation_size": 32, "proposals_train": 100, "proposals_test": 100}


def build(name: str, *, defaults: bool = False, num_classes: int = NUM_CLASSES, **options):
    """One of ours, whose classes are not all as unlikely as those of fresh weights."""
    options = ({} if defaults or is_dense(name) else SMALL) | options
    stages = [3, 4, 5] if is_dense(name) else [2, 3, 4, 5]
    backbone = ResNet(depth=18, weights=None, norm="gn", freeze_at=0, out_stages=stages)
    model = _KINDS[name][0](
        backbone=backbone, num_classes=num_classes, neck_channels=CHANNELS, **options
    )
    classifier = model.get_submodule(model.class_layers[0])
    nn.init.normal_(classifier.weight, std=0.3)
    nn.init.zeros_(classifier.bias)
    return model


def build_raw(name: str, ours: nn.Module) -> nn.Module:
    """torchvision's own, with its defaults and the weights of ours."""
    stages = [2, 3, 4] if is_dense(name) else [1, 2, 3, 4]
    resnet = torchvision.models.resnet18(weights=None, norm_layer=partial(nn.GroupNorm, 32))
    backbone = BackboneWithFPN(
        resnet,
        {f"layer{stage}": str(index) for index, stage in enumerate(stages)},
        [64 * 2 ** (stage - 1) for stage in stages],
        CHANNELS,
        extra_blocks=LastLevelP6P7(CHANNELS, CHANNELS) if is_dense(name) else None,
    )
    options = {}
    if name == "mask_rcnn":
        options["mask_head"] = MaskRCNNHeads(CHANNELS, (CHANNELS,) * 4, 1)
    classes = NUM_CLASSES + (not is_dense(name))
    raw = _KINDS[name][1](backbone, classes, _skip_resize=True, min_size=64, **options)
    if name == "mask_rcnn":
        raw.roi_heads.mask_predictor = MaskRCNNPredictor(CHANNELS, CHANNELS, classes)
    renamed = {
        key.replace("backbone.", "backbone.body.")
        .replace("neck.", "backbone.fpn.")
        .replace("network.", ""): value
        for key, value in ours.state_dict().items()
    }
    raw.load_state_dict(renamed)
    return raw


def sample(size: tuple[int, int], boxes: list, classes: list[int], *, masks: bool = False) -> dict:
    """An image with boxes, and rectangles as masks."""
    height, width = size
    rng = np.random.default_rng(height * width)
    pixels = rng.integers(0, 256, (3, height, width), dtype=np.uint8)
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    if masks:
        filled = torch.zeros(len(boxes), *size, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(filled, np.asarray(boxes, int), strict=True):
            mask[y0:y1, x0 : (x0 + x1) // 2] = True
        instances.gt_masks = BitMasks(filled)
    return {
        "image": torch.from_numpy(pixels),
        "instances": instances,
        "height": height,
        "width": width,
        "file_name": f"{height}x{width}.png",
    }


def make_batch(*, masks: bool = False) -> list[dict]:
    """Short sides of 64 pixels, so that torchvision does not resize; one image has no objects."""
    return [
        sample(
            (64, 96), [[4, 4, 40, 50], [30, 20, 70, 60], [2, 30, 20, 44]], [0, 2, 1], masks=masks
        ),
        sample((96, 64), [], []),
        sample((80, 64), [[10, 12, 60, 70]], [2], masks=masks),
    ]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def parts():
    """The functions of this file, for tests."""
    import types

    return types.SimpleNamespace(
        build=build, build_raw=build_raw, make_batch=make_batch, sample=sample, is_dense=is_dense
    )
