"""DETReg: one-stage Deformable DETR R50 on all images of ImageNet-1k, 5 epochs, no labels.

As `configs/detreg_in100.py`, which says what is needed; this one's weights are those that the
authors fine-tune on full COCO and PASCAL VOC.

Run: tools/lazyconfig_train_net.py --config-file configs/detreg_in1k.py --num-gpus 8
Schedule: 5 epochs x 6_672 steps (1_281_167 images in batches of 192) = 33_360 steps; the
learning rate stays.
Reported by a user after fine-tuning on full COCO: 45.5 AP. Not trained by us yet.
"""

from .common.schedule import set_length
from .detreg_in100 import choices, data, dataloader, lr_multiplier, model, optimizer, train

data.unlabeled.folders = None

train.output_dir = "output/detreg_in1k"
set_length(train, lr_multiplier, epoch=1_281_167 // 192, epochs=5)
