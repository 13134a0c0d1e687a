"""One-stage Deformable DETR with a ResNet-50 on PASCAL VOC, 100 epochs, as DETReg fine-tunes.

Run: tools/lazyconfig_train_net.py --num-gpus 8 \\
    --config-file configs/deformable_detr_r50_voc_100ep.py
Fine-tune: the same with train.init_checkpoint=PRETRAINED train.reinit=auto
Schedule: 100 epochs x 517 steps (16_551 images in batches of 32) = 51_700 steps; a tenth of the
learning rate after 70 epochs = 36_190 steps.
Published from ImageNet weights alone: 59.5 AP (DETReg, Table 1, which averages VOC's 11-point AP).
Not trained by us yet.
DETReg's 10% of the labels, 200 epochs of 206 steps, the drop after 150: data.train.fraction=0.1
    dataloader.train.total_batch_size=8 train.max_iter=41200 lr_multiplier.max_iter=41200
    lr_multiplier.drop_steps=[30900]
"""

from .common.schedule import set_length
from .common.voc import data, dataloader
from .deformable_detr_r50_coco_50ep import lr_multiplier, model, optimizer, train

dataloader.train.total_batch_size = 32

train.output_dir = "output/deformable_detr_r50_voc_100ep"
set_length(train, lr_multiplier, epoch=16_551 // 32, epochs=100, drop=70, eval_epochs=5)
