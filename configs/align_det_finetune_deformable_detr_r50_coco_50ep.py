"""Fine-tuning of an AlignDet-pre-trained one-stage Deformable DETR R50 on COCO, 50 epochs.

All layers are trained, the backbone with synchronised batch norms. The layers that predict classes
and coordinates start afresh.

Run: tools/lazyconfig_train_net.py --num-gpus 8 \\
        --config-file configs/align_det_finetune_deformable_detr_r50_coco_50ep.py
Schedule: 50 epochs x 3_696 steps (118_287 images in batches of 32) = 184_800 steps; a tenth of
the learning rate after 40 epochs = 147_840 steps.
"""

from .deformable_detr_r50_coco_50ep import data, dataloader, lr_multiplier, model, optimizer, train

model.backbone.norm = "sync_bn"
model.backbone.freeze_at = 0

train.init_checkpoint = "output/align_det_deformable_detr_r50_coco/checkpoints/last.pth"
train.reinit = ["last-layers"]
train.output_dir = "output/align_det_finetune_deformable_detr_r50_coco_50ep"
