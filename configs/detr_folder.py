"""DETR R50 on one's own labelled images: fine-tuning of a pre-trained DETR, and its baseline.

Takes only paths; the format is detected and the classes come from the data. DETR without
pre-training needs long training: with few labels begin with `configs/deformable_detr_folder.py`.

Run: tools/lazyconfig_train_net.py --config-file configs/detr_folder.py --num-gpus 1 \\
    data.train.source=DATA data.train.split=train data.test.source=DATA data.test.split=val
Fine-tune: the same with train.init_checkpoint=PRETRAINED train.reinit=auto

The backbone starts from torchvision's ImageNet weights (downloaded once). Length and batch are
ours, for a few hundred labelled images on one GPU.
"""

from .common.models.detr import model
from .deformable_detr_folder import data, dataloader, lr_multiplier, optimizer, train

optimizer.params.lr_factors = {"backbone": 0.1}

train.output_dir = "output/folder/detr"
train.max_iter = 40_000
lr_multiplier.max_iter = train.max_iter
lr_multiplier.drop_steps = [32_000]
