"""Mask R-CNN of torchvision for 128-pixel images on a CPU, nothing downloaded.

ResNet-18 from random weights with GroupNorm, a pyramid of 64 channels, anchors of half the size.

Run: tools/lazyconfig_train_net.py --config-file configs/tiny/mask_rcnn.py --num-gpus 0 \\
    data.train.source=SCENES data.test.source=SCENES

The data has no masks: its boxes are trained alone.
"""

from ..common.models.torchvision_detectors import mask_rcnn as model
from .deformable_detr import data, dataloader, lr_multiplier, optimizer, train

model.backbone.depth = 18
model.backbone.weights = None
model.backbone.norm = "gn"
model.backbone.freeze_at = 0
model.neck_channels = 64
model.anchor_scale = 4.0
model.representation_size = 256
model.proposals_train = model.proposals_test = 200
model.roi_samples = 64  # a third less work than torchvision's 512

optimizer.params.lr_factors = {}
train.output_dir = "output/tiny/mask_rcnn"
train.clip_grad_norm = 10.0
