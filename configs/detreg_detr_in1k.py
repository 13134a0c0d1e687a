"""DETReg on DETR R50, pre-norm, on all images of ImageNet-1k, no labels.

As `configs/detreg_in100.py`, which says what is needed, on the detector of the authors' second
model.

Run: tools/lazyconfig_train_net.py --config-file configs/detreg_detr_in1k.py --num-gpus 8
Fine-tune: configs/detreg_finetune_detr_coco_300ep.py
Schedule: 60 epochs x 6_672 steps (1_281_167 images in batches of 192) = 400_320 steps; the
learning rate stays.
Not trained by us yet.
"""

from .common.detreg import SWAV, choices, data, dataloader, pretrain
from .common.models.detr import model
from .common.optim import optimizer
from .common.schedule import constant as lr_multiplier
from .common.schedule import set_length
from .common.train import train

model.transformer.pre_norm = True
model = pretrain(model)
model.detector.backbone.weights = SWAV

data.unlabeled.source, data.unlabeled.split = "datasets/imagenet", "train"

optimizer.params.lr_factors = {}  # the backbone is frozen

train.output_dir = "output/detreg_detr_in1k"
set_length(train, lr_multiplier, epoch=1_281_167 // 192, epochs=60)
