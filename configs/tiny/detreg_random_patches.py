"""DETReg of the tiny one-stage Deformable DETR on boxes at random places: a control.

As `configs/tiny/detreg.py`, which says where the backbone comes from.

Run: tools/lazyconfig_train_net.py --num-gpus 0 \\
    --config-file configs/tiny/detreg_random_patches.py data.unlabeled.source=SCENES \\
    model.detector.backbone.weights=output/tiny/image_domain/checkpoints/last.pth
"""

from ..common.pretext import random_patches as _boxes
from .detreg_one_stage import data, dataloader, lr_multiplier, model, optimizer, train

dataloader.train.mapper.boxes = _boxes

train.output_dir = "output/tiny/detreg_random_patches"
