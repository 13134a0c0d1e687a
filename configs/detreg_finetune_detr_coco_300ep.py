"""Fine-tuning of DETReg's DETR on COCO, 300 epochs: all but the class head is kept.

DETR's own recipe (`configs/detr_r50_coco_300ep.py`), pre-norm as in pre-training, started from a
checkpoint of `configs/detreg_detr_in1k.py`; what is kept is what
`configs/detreg_finetune_coco_50ep.py` keeps.

Run: tools/lazyconfig_train_net.py --num-gpus 8 \\
    --config-file configs/detreg_finetune_detr_coco_300ep.py
Schedule: 300 epochs x 7_392 steps (118_287 images in batches of 16) = 2_217_600 steps; a tenth of
the learning rate after 200 epochs = 1_478_400 steps.
Not trained by us yet.
"""

from .detr_r50_coco_300ep import data, dataloader, lr_multiplier, model, optimizer, train

model.transformer.pre_norm = True

train.init_checkpoint = "output/detreg_detr_in1k/checkpoints/last.pth"
train.reinit = ["class_head"]
train.output_dir = "output/detreg_finetune_detr_coco_300ep"
