"""torchvision's detectors with a ResNet-50: pyramid, heads and thresholds of torchvision.

The recipes of torchvision and of the papers freeze the stem and the first stage, and every batch
normalisation, of a backbone with ImageNet weights. `shrink` makes them small enough for a CPU.
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


def shrink(model: DictConfig) -> None:
    """A ResNet-18 from random weights with GroupNorm, 64 channels, anchors of half the size."""
    model.backbone.update(depth=18, weights=None, norm="gn", freeze_at=0)
    model.neck_channels = 64
    if "anchor_scale" in model:  # FCOS has points
        model.anchor_scale /= 2
    if "representation_size" in model:  # two stages
        model.representation_size = 256
        model.proposals_train = model.proposals_test = 200
        model.roi_samples = 64  # a third less work than torchvision's 512
