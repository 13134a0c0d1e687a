"""RetinaNet of torchvision for 128-pixel images on a CPU, nothing downloaded.

ResNet-18 from random weights with GroupNorm, a pyramid of 64 channels, anchors of half the size.

Run: tools/lazyconfig_train_net.py --config-file configs/tiny/retinanet.py --num-gpus 0 \\
    data.train.source=SCENES data.test.source=SCENES
"""

from ..common.models.torchvision_detectors import retinanet as model
from ..common.models.torchvision_detectors import shrink
from .deformable_detr import data, dataloader, lr_multiplier, optimizer, train

shrink(model)

optimizer.params.lr_factors = {}
train.output_dir = "output/tiny/retinanet"
train.clip_grad_norm = 10.0
