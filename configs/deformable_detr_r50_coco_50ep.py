"""Deformable DETR with a ResNet-50 on COCO, 50 epochs: one-stage, without refinement.

Run: tools/lazyconfig_train_net.py --config-file configs/deformable_detr_r50_coco_50ep.py \\
    --num-gpus 8
Published: 44.5 AP. Not trained by us yet.
"""

from .common.data import data, dataloader
from .common.models.deformable_detr import one_stage as model
from .common.optim import optimizer
from .common.schedule import constant as lr_multiplier
from .common.train import train

dataloader.train.total_batch_size = 32

optimizer.lr = 2e-4
optimizer.params.lr_factors = {"backbone": 0.1, "sampling_offsets": 0.1, "reference_points": 0.1}

train.output_dir = "output/deformable_detr_r50_coco_50ep"
train.max_iter = 184_800  # 50 epochs * 3_696 batches of 32 in 118_287 images
lr_multiplier.max_iter = train.max_iter
lr_multiplier.drop_steps = [147_840]  # epoch 40
train.eval_period = 18_480  # 5 epochs
train.checkpoint_period = 3_696
