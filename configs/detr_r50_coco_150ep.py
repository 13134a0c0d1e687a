"""DETR with a ResNet-50 on COCO, 150 epochs.

Run: tools/lazyconfig_train_net.py --config-file configs/detr_r50_coco_150ep.py --num-gpus 8
Schedule: 150 epochs x 7_392 steps (118_287 images in batches of 16) = 1_108_800 steps; a tenth of
the learning rate after 100 epochs = 739_200 steps.
Published: 39.5 AP. Not trained by us yet.
"""

from .common.schedule import set_length
from .detr_r50_coco_300ep import data, dataloader, lr_multiplier, model, optimizer, train

train.output_dir = "output/detr_r50_coco_150ep"
set_length(train, lr_multiplier, epoch=118_287 // 16, epochs=150, drop=100, eval_epochs=5)
