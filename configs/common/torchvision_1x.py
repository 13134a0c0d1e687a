"""The usual 1x schedule of detectors with pyramids on COCO: SGD, 12 epochs, images of 800 pixels.

118_287 images in batches of 16: 7_392 steps an epoch, 88_704 in all; a tenth of the learning rate
after 8 epochs = 59_136 steps, and again after 11 = 81_312. Warm-up over 500 steps.
"""

import torch

from predet.d2 import LazyCall as L
from predet.data.augmentation import Compose, HorizontalFlip, ResizeShortSide
from predet.engine.optim import parameter_groups

from .data import data, dataloader
from .schedule import constant as lr_multiplier
from .train import train

dataloader.train.mapper.augmentation = L(Compose)(
    steps=[
        L(ResizeShortSide)(short_sides=[800], max_size=1333),
        L(HorizontalFlip)(probability=0.5),
    ]
)
dataloader.train.total_batch_size = 16

optimizer = L(torch.optim.SGD)(
    params=L(parameter_groups)(), lr=0.02, momentum=0.9, weight_decay=1e-4
)

epoch = 118_287 // 16
train.clip_grad_norm = None
train.max_iter = 12 * epoch
train.eval_period = train.checkpoint_period = epoch
lr_multiplier.max_iter = train.max_iter
lr_multiplier.drop_steps = [8 * epoch, 11 * epoch]
lr_multiplier.warmup_steps = 500
