"""H-Deformable DETR with a Swin-L on COCO, 12 epochs.

Run: tools/lazyconfig_train_net.py --num-gpus 8 \\
    --config-file configs/h_deformable_detr_swin_l_coco_12ep.py
Fine-tune: the same with train.init_checkpoint=PRETRAINED train.reinit=auto
Schedule: 12 epochs x 7_392 steps (118_287 images in batches of 16) = 88_704 steps; a tenth of the
learning rate after 11 epochs = 81_312 steps.
Published: 55.9 AP; with model.queries.num_queries=900 56.1 AP. Not trained by us yet.
"""

from .common.models.backbones import swin_large as _swin_large
from .common.schedule import set_length
from .h_deformable_detr_r50_coco_12ep import (
    data,
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone = _swin_large
model.backbone.checkpointing = True  # as published: memory for time

train.output_dir = "output/h_deformable_detr_swin_l_coco_12ep"
set_length(train, lr_multiplier, epoch=118_287 // 16, epochs=12, drop=11)
