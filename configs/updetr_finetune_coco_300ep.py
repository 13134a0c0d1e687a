"""Fine-tuning of UP-DETR on COCO, 300 epochs: all but the class head is kept.

DETR's own recipe (configs/detr_r50_coco_300ep.py), pre-norm, started from a checkpoint of UP-DETR
instead of ImageNet's backbone. Kept: backbone, projection, transformer, queries and box head. Anew:
the class head, whose classes are others. Left behind: the projection of patches onto queries and
the head that reconstructs them. The backbone learns again from its third stage on, at 5e-5, half of
the rate, where DETR has a tenth.

Run: tools/lazyconfig_train_net.py --num-gpus 8 \\
    --config-file configs/updetr_finetune_coco_300ep.py
Published weights: tools/convert_checkpoint.py, then train.init_checkpoint=CONVERTED
Schedule: 300 epochs x 7_392 steps (118_287 images in batches of 16) = 2_217_600 steps; a tenth of
the learning rate after 200 epochs = 1_478_400 steps.
Published: 42.8 AP (Table 2), 43.1 without shuffling (appendix A.3). Not trained by us yet.
"""

from .detr_r50_coco_300ep import data, dataloader, lr_multiplier, model, optimizer, train

model.transformer.pre_norm = True

optimizer.params.lr_factors = {"backbone": 0.5}

train.init_checkpoint = "output/updetr_in1k/checkpoints/last.pth"
train.reinit = ["class_head"]
train.output_dir = "output/updetr_finetune_coco_300ep"
