"""DETReg: one-stage Deformable DETR R50 on the images of COCO train2017, no labels.

What fine-tuning on a part of COCO's labels starts from (`configs/detreg_finetune_coco_*pct_*.py`).
As `configs/detreg_in100.py`, which says what is needed; from SwAV, not from DETReg on ImageNet.

Run: tools/lazyconfig_train_net.py --config-file configs/detreg_coco.py --num-gpus 8
Schedule: 50 epochs x 616 steps (118_287 images in batches of 192) = 30_800 steps; a tenth of
the learning rate after 40 epochs = 24_640 steps.
Not trained by us yet.
"""

from .common.schedule import set_length
from .detreg_in100 import choices, data, dataloader, lr_multiplier, model, optimizer, train

data.unlabeled.source, data.unlabeled.split = "datasets/coco", "train2017"
data.unlabeled.folders = None

train.output_dir = "output/detreg_coco"
set_length(train, lr_multiplier, epoch=118_287 // 192, epochs=50, drop=40)
