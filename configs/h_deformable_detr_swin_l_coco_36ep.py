"""H-Deformable DETR with a Swin-L on COCO, 36 epochs.

Run: tools/lazyconfig_train_net.py --num-gpus 8 \\
    --config-file configs/h_deformable_detr_swin_l_coco_36ep.py
Fine-tune: the same with train.init_checkpoint=PRETRAINED train.reinit=auto
Schedule: 36 epochs x 7_392 steps (118_287 images in batches of 16) = 266_112 steps; a tenth of
the learning rate after 30 epochs = 221_760 steps.
Published: 57.1 AP. Not trained by us yet.
"""

from .common.schedule import set_length
from .h_deformable_detr_swin_l_coco_12ep import (
    data,
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.drop_path = 0.5

train.output_dir = "output/h_deformable_detr_swin_l_coco_36ep"
set_length(train, lr_multiplier, epoch=118_287 // 16, epochs=36, drop=30)
