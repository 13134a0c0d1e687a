"""Faster R-CNN of torchvision with a ResNet-50 on one's own labelled images.

Takes only paths; the format is detected and the classes come from the data.

Run: tools/lazyconfig_train_net.py --config-file configs/faster_rcnn_folder.py --num-gpus 1 \\
    data.train.source=DATA data.train.split=train data.test.source=DATA data.test.split=val
Fine-tune: the same with train.init_checkpoint=PRETRAINED train.reinit=[last-layers]

The backbone starts from torchvision's ImageNet weights (downloaded once). Length, batch and
learning rate are ours, for a few hundred labelled images on one GPU.
"""

from .common.models.torchvision_detectors import faster_rcnn as model
from .common.torchvision_1x import data, dataloader, lr_multiplier, optimizer, train

data.train.source = data.test.source = "datasets/mine"
data.train.split, data.test.split = "train", "val"
dataloader.train.mapper.augmentation.steps[0].short_sides = list(range(640, 801, 32))
dataloader.train.total_batch_size = 8

optimizer.lr = 0.01

train.output_dir = "output/folder/faster_rcnn"
train.clip_grad_norm = 10.0  # few images, high rate: a bad start should not end the run
train.max_iter = 10_000
train.eval_period = 1_000
train.checkpoint_period = 500
lr_multiplier.max_iter = train.max_iter
lr_multiplier.drop_steps = [8_000]
lr_multiplier.warmup_steps = 500
