"""Fine-tuning of DETReg on COCO, as the authors do: all but the class head is kept.

Deformable DETR's own recipe (`configs/deformable_detr_r50_coco_50ep.py`), started from a checkpoint
of DETReg instead of ImageNet's backbone. Kept: backbone, projections, transformer, queries and box
head. Anew: the class head, whose classes are others. Left behind: encoder and embedding head. The
backbone learns again from its third stage on, at a tenth of the rate.

Run: tools/lazyconfig_train_net.py --num-gpus 8 \\
    --config-file configs/detreg_finetune_coco_50ep.py
Schedule: 50 epochs x 3_696 steps (118_287 images in batches of 32) = 184_800 steps; a tenth of
the learning rate after 40 epochs = 147_840 steps.
Reported by a user, from configs/detreg_in1k.py: 45.5 AP. Not trained by us yet.
"""

from .deformable_detr_r50_coco_50ep import data, dataloader, lr_multiplier, model, optimizer, train

train.init_checkpoint = "output/detreg_in1k/checkpoints/last.pth"
train.reinit = ["class_head"]
train.output_dir = "output/detreg_finetune_coco_50ep"
