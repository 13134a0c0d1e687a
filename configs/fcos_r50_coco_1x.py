"""FCOS of torchvision with a ResNet-50 on COCO, the usual 12 epochs.

Run: tools/lazyconfig_train_net.py --num-gpus 8 --config-file configs/fcos_r50_coco_1x.py
Fine-tune: the same with train.init_checkpoint=PRETRAINED train.reinit=[last-layers]; AlignDet
    with optimizer.lr=0.015 optimizer.weight_decay=5e-5
Published: 39.2 AP (torchvision, 26 epochs). Not trained by us yet.
"""

from .common.models.torchvision_detectors import fcos as model
from .common.torchvision_1x import data, dataloader, lr_multiplier, optimizer, train

optimizer.lr = 0.01
train.output_dir = "output/fcos_r50_coco_1x"
