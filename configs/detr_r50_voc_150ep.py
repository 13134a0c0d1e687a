"""DETR with a ResNet-50 on PASCAL VOC, 150 epochs, as UP-DETR (arXiv 2011.09094) compares.

Run: tools/lazyconfig_train_net.py --config-file configs/detr_r50_voc_150ep.py --num-gpus 8
Fine-tune: the same with train.init_checkpoint=PRETRAINED train.reinit=auto;
    UP-DETR with optimizer.params.lr_factors.backbone=0.5
Schedule: 150 epochs x 1_034 steps (16_551 images in batches of 16) = 155_100 steps; a tenth of
the learning rate after 100 epochs = 103_400 steps.
Published without pre-training: 49.9 AP, 74.5 AP50 (UP-DETR, Table 1). Not trained by us yet.
"""

from .common.schedule import set_length
from .common.voc import data, dataloader
from .detr_r50_coco_300ep import lr_multiplier, model, optimizer, train

train.output_dir = "output/detr_r50_voc_150ep"
set_length(train, lr_multiplier, epoch=16_551 // 16, epochs=150, drop=100, eval_epochs=10)
