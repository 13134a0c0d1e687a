"""H-Deformable DETR with a Swin-T on PASCAL VOC, 36 epochs.

Run: tools/lazyconfig_train_net.py --num-gpus 8 \\
    --config-file configs/h_deformable_detr_swin_t_voc_36ep.py
Fine-tune: the same with train.init_checkpoint=PRETRAINED train.reinit=auto
Schedule: 36 epochs x 1_034 steps (16_551 images in batches of 16) = 37_224 steps; a tenth of the
learning rate after 30 epochs = 31_020 steps.
Ours, for the published numbers of epochs are those of COCO. Not trained by us yet.
"""

from .common.schedule import set_length
from .common.voc import data, dataloader
from .h_deformable_detr_swin_t_coco_36ep import lr_multiplier, model, optimizer, train

train.output_dir = "output/h_deformable_detr_swin_t_voc_36ep"
set_length(train, lr_multiplier, epoch=16_551 // 16, epochs=36, drop=30, eval_epochs=3)
