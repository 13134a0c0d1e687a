"""torchvision's detectors with a ResNet-50: pyramid, heads and thresholds of torchvision.

The recipes of torchvision and of the papers freeze the stem and the first stage, and every batch
normalisation, of a backbone with ImageNet weights.
"""

from omegaconf import DictConfig

from predet.d2 import LazyCall as L
from predet.modeling.backbone import ResNet
from predet.projects.torchvision_detectors import FCOS, FasterRCNN, MaskRCNN, RetinaNet


def _resnet(stages: list[int]) -> DictConfig:
    return L(ResNet)(
        depth=50, weights="torchvision", norm="frozen_bn", freeze_at=2, out_stages=stages
    )


retinanet = L(RetinaNet)(
    backbone=_resnet([3, 4, 5]),
    num_classes="${data.num_classes}",
    neck_channels=256,
    neck_norm=None,
    anchor_scale=4.0,
    score_threshold=0.05,
    nms_threshold=0.5,
    detections_per_image=100,
)

fcos = L(FCOS)(
    backbone=_resnet([3, 4, 5]),
    num_classes="${data.num_classes}",
    neck_channels=256,
    neck_norm=None,
    # torchvision has 0.2; AP counts what is less certain, too, and the paper has 0.05.
    score_threshold=0.05,
    nms_threshold=0.6,
    detections_per_image=100,
)

_two_stage = dict(
    backbone=_resnet([2, 3, 4, 5]),
    num_classes="${data.num_classes}",
    neck_channels=256,
    neck_norm=None,
    anchor_scale=8.0,
    head_convolutions=0,
    representation_size=1024,
    proposals_train=2000,
    proposals_test=1000,
    score_threshold=0.05,
    nms_threshold=0.5,
    detections_per_image=100,
)

faster_rcnn = L(FasterRCNN)(**_two_stage)

# predet's data has no masks to train them.
mask_rcnn = L(MaskRCNN)(**_two_stage, mask_threshold=None)
