"""Deformable DETR with iterative box refinement on COCO, 50 epochs.

Run: tools/lazyconfig_train_net.py --config-file configs/deformable_detr_refined_r50_coco_50ep.py \\
    --num-gpus 8
Schedule: 50 epochs x 3_696 steps (118_287 images in batches of 32) = 184_800 steps; a tenth of
the learning rate after 40 epochs = 147_840 steps.
Published: 46.2 AP. Not trained by us yet.
"""

from .common.models.deformable_detr import refined as model
from .deformable_detr_r50_coco_50ep import data, dataloader, lr_multiplier, optimizer, train

train.output_dir = "output/deformable_detr_refined_r50_coco_50ep"
