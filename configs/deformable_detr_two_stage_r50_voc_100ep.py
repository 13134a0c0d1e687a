"""Two-stage Deformable DETR with a ResNet-50 on PASCAL VOC, 100 epochs.

Run: tools/lazyconfig_train_net.py --num-gpus 8 \\
    --config-file configs/deformable_detr_two_stage_r50_voc_100ep.py
Fine-tune: the same with train.init_checkpoint=PRETRAINED train.reinit=auto
Schedule: 100 epochs x 517 steps (16_551 images in batches of 32) = 51_700 steps; a tenth of the
learning rate after 70 epochs = 36_190 steps.
Ours, no paper has it: the schedule is that of DETReg's one-stage detector. Not trained by us yet.
"""

from .common.schedule import set_length
from .common.voc import data, dataloader
from .deformable_detr_two_stage_r50_coco_50ep import lr_multiplier, model, optimizer, train

dataloader.train.total_batch_size = 32

train.output_dir = "output/deformable_detr_two_stage_r50_voc_100ep"
set_length(train, lr_multiplier, epoch=16_551 // 32, epochs=100, drop=70, eval_epochs=5)
