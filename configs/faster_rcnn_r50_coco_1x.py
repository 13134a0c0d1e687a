"""Faster R-CNN of torchvision with a ResNet-50 on COCO, the usual 12 epochs.

Run: tools/lazyconfig_train_net.py --num-gpus 8 --config-file configs/faster_rcnn_r50_coco_1x.py
Fine-tune: the same with train.init_checkpoint=PRETRAINED train.reinit=[last-layers]; AlignDet
    with optimizer.lr=0.03 optimizer.weight_decay=5e-5
Published: 37.0 AP (torchvision, 26 epochs). Not trained by us yet.
"""

from .common.models.torchvision_detectors import faster_rcnn as model
from .common.torchvision_1x import data, dataloader, lr_multiplier, optimizer, train

train.output_dir = "output/faster_rcnn_r50_coco_1x"
