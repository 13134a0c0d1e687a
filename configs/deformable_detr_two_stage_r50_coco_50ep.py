"""Two-stage Deformable DETR on COCO, 50 epochs; also the fine-tuning of pre-trained students.

Run: tools/lazyconfig_train_net.py --num-gpus 8 \\
    --config-file configs/deformable_detr_two_stage_r50_coco_50ep.py
Fine-tune: the same with train.init_checkpoint=PRETRAINED train.reinit=auto
Schedule: 50 epochs x 3_696 steps (118_287 images in batches of 32) = 184_800 steps; a tenth of
the learning rate after 40 epochs = 147_840 steps.
Published from ImageNet weights alone: 46.9 AP. Not trained by us yet.
"""

from .common.models.deformable_detr import two_stage as model
from .deformable_detr_r50_coco_50ep import data, dataloader, lr_multiplier, optimizer, train

optimizer.params.lr_factors = {"backbone": 0.1, "sampling_offsets": 0.1}  # no reference_points

train.output_dir = "output/deformable_detr_two_stage_r50_coco_50ep"
