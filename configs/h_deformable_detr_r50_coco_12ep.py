"""H-Deformable DETR with a ResNet-50 on COCO, 12 epochs.

Run: tools/lazyconfig_train_net.py --num-gpus 8 \\
    --config-file configs/h_deformable_detr_r50_coco_12ep.py
Fine-tune: the same with train.init_checkpoint=PRETRAINED train.reinit=auto
Schedule: 12 epochs x 7_392 steps (118_287 images in batches of 16) = 88_704 steps; a tenth of the
learning rate after 11 epochs = 81_312 steps.
Published: 48.7 AP. Not trained by us yet.
"""

from .common.data import data, dataloader
from .common.models.h_deformable_detr import model
from .common.optim import optimizer
from .common.schedule import constant as lr_multiplier
from .common.schedule import set_length
from .common.train import train

optimizer.lr = 2e-4
optimizer.params.lr_factors = {"backbone": 0.1, "sampling_offsets": 0.1}

train.output_dir = "output/h_deformable_detr_r50_coco_12ep"
set_length(train, lr_multiplier, epoch=118_287 // 16, epochs=12, drop=11)
