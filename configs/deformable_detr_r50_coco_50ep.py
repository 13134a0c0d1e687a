"""Deformable DETR with a ResNet-50 on COCO, 50 epochs: one-stage, without refinement.

Run: tools/lazyconfig_train_net.py --num-gpus 8 \\
    --config-file configs/deformable_detr_r50_coco_50ep.py
Schedule: 50 epochs x 3_696 steps (118_287 images in batches of 32) = 184_800 steps; a tenth of
the learning rate after 40 epochs = 147_840 steps.
Published: 44.5 AP. Not trained by us yet.
"""

from .common.data import data, dataloader
from .common.models.deformable_detr import one_stage as model
from .common.optim import optimizer
from .common.schedule import constant as lr_multiplier
from .common.schedule import set_length
from .common.train import train

dataloader.train.total_batch_size = 32

optimizer.lr = 2e-4
optimizer.params.lr_factors = {"backbone": 0.1, "sampling_offsets": 0.1, "reference_points": 0.1}

train.output_dir = "output/deformable_detr_r50_coco_50ep"
set_length(train, lr_multiplier, epoch=118_287 // 32, epochs=50, drop=40, eval_epochs=5)
