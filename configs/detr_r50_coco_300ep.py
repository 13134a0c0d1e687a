"""DETR with a ResNet-50 on COCO, 300 epochs.

Run: tools/lazyconfig_train_net.py --config-file configs/detr_r50_coco_300ep.py --num-gpus 8
Published for the same schedule: 40.8 AP (UP-DETR, Table 2). Not trained by us yet.
"""

from .common.data import data, dataloader
from .common.models.detr import model
from .common.optim import optimizer
from .common.schedule import constant as lr_multiplier
from .common.train import train

dataloader.train.total_batch_size = 16

train.output_dir = "output/detr_r50_coco_300ep"
train.max_iter = 2_217_600  # 300 epochs * 7_392 batches of 16 in 118_287 images
lr_multiplier.max_iter = train.max_iter
lr_multiplier.drop_steps = [1_478_400]  # epoch 200
train.eval_period = 36_960  # 5 epochs
train.checkpoint_period = 7_392
