"""DETR with a ResNet-50 on COCO, 500 epochs.

Run: tools/lazyconfig_train_net.py --config-file configs/detr_r50_coco_500ep.py --num-gpus 8
Schedule: 500 epochs x 7_392 steps (118_287 images in batches of 16) = 3_696_000 steps; a tenth of
the learning rate after 400 epochs = 2_956_800 steps.
Published: 42.0 AP. Not trained by us yet.
"""

from .common.schedule import set_length
from .detr_r50_coco_300ep import data, dataloader, lr_multiplier, model, optimizer, train

train.output_dir = "output/detr_r50_coco_500ep"
set_length(train, lr_multiplier, epoch=118_287 // 16, epochs=500, drop=400, eval_epochs=5)
