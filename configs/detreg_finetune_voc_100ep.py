"""Fine-tuning of DETReg on PASCAL VOC, as `configs/detreg_finetune_coco_50ep.py` does on COCO.

Run: tools/lazyconfig_train_net.py --num-gpus 8 \\
    --config-file configs/detreg_finetune_voc_100ep.py
Schedule: 100 epochs x 517 steps (16_551 images in batches of 32) = 51_700 steps; a tenth of the
learning rate after 70 epochs = 36_190 steps.
Published: 63.5 AP (Table 1, which averages VOC's 11-point AP). Not trained by us yet.
"""

from .deformable_detr_r50_voc_100ep import data, dataloader, lr_multiplier, optimizer, train
from .detreg_finetune_coco_50ep import model
from .detreg_finetune_coco_50ep import train as _start

train.init_checkpoint, train.reinit = _start.init_checkpoint, _start.reinit
train.output_dir = "output/detreg_finetune_voc_100ep"
