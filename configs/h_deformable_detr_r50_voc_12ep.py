"""H-Deformable DETR with a ResNet-50 on PASCAL VOC, 12 epochs.

Run: tools/lazyconfig_train_net.py --num-gpus 8 \\
    --config-file configs/h_deformable_detr_r50_voc_12ep.py
Fine-tune: the same with train.init_checkpoint=PRETRAINED train.reinit=auto
Schedule: 12 epochs x 1_034 steps (16_551 images in batches of 16) = 12_408 steps; a tenth of the
learning rate after 11 epochs = 11_374 steps.
Ours, for the published numbers of epochs are those of COCO. Not trained by us yet.
"""

from .common.schedule import set_length
from .common.voc import data, dataloader
from .h_deformable_detr_r50_coco_12ep import lr_multiplier, model, optimizer, train

train.output_dir = "output/h_deformable_detr_r50_voc_12ep"
set_length(train, lr_multiplier, epoch=16_551 // 16, epochs=12, drop=11)
