"""DETR with a ResNet-50 on COCO, 300 epochs.

Run: tools/lazyconfig_train_net.py --config-file configs/detr_r50_coco_300ep.py --num-gpus 8
Schedule: 300 epochs x 7_392 steps (118_287 images in batches of 16) = 2_217_600 steps; a tenth of
the learning rate after 200 epochs = 1_478_400 steps.
Published for the same schedule: 40.8 AP (UP-DETR, Table 2). Not trained by us yet.
"""

from .common.data import data, dataloader
from .common.models.detr import model
from .common.optim import optimizer
from .common.schedule import constant as lr_multiplier
from .common.schedule import set_length
from .common.train import train

train.output_dir = "output/detr_r50_coco_300ep"
set_length(train, lr_multiplier, epoch=118_287 // 16, epochs=300, drop=200, eval_epochs=5)
