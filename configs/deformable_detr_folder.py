"""Two-stage Deformable DETR R50 on one's own labelled images: teacher, fine-tuning, baseline.

Takes only paths; the format is detected and the classes come from the data.

Run: tools/lazyconfig_train_net.py --config-file configs/deformable_detr_folder.py --num-gpus 1 \\
    data.train.source=DATA data.train.split=train data.test.source=DATA data.test.split=val
Fine-tune: the same with train.init_checkpoint=PRETRAINED train.reinit=auto

The backbone starts from torchvision's ImageNet weights (downloaded once). Length and batch are
ours, for a few hundred labelled images on one GPU.
"""

from .common.data import data, dataloader
from .common.models.deformable_detr import two_stage as model
from .common.optim import optimizer
from .common.schedule import constant as lr_multiplier
from .common.train import train

data.train.source = data.test.source = "datasets/mine"
data.train.split, data.test.split = "train", "val"
dataloader.train.total_batch_size = 8

optimizer.lr = 1e-4
optimizer.params.lr_factors = {"backbone": 0.1, "sampling_offsets": 0.1}

train.output_dir = "output/folder/deformable_detr"
train.max_iter = 10_000
lr_multiplier.max_iter = train.max_iter
lr_multiplier.drop_steps = [8_000]
train.eval_period = 1_000
train.checkpoint_period = 500
