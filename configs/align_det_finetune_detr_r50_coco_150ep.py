"""Fine-tuning of an AlignDet-pre-trained DETR R50 on COCO, 150 epochs, as published.

All layers are trained, the backbone with synchronised batch norms. The layers that predict classes
and coordinates start afresh (the paper's default; train.reinit=[class_head] keeps the latter).

Run: tools/lazyconfig_train_net.py --num-gpus 8 \\
        --config-file configs/align_det_finetune_detr_r50_coco_150ep.py
Schedule: 150 epochs x 7_392 steps (118_287 images in batches of 16) = 1_108_800 steps; a tenth of
the learning rate after 100 epochs = 739_200 steps.
"""

from .detr_r50_coco_150ep import data, dataloader, lr_multiplier, model, optimizer, train

model.backbone.norm = "sync_bn"
model.backbone.freeze_at = 0

train.init_checkpoint = "output/align_det_detr_r50_coco/checkpoints/last.pth"
train.reinit = ["last-layers"]
train.output_dir = "output/align_det_finetune_detr_r50_coco_150ep"
