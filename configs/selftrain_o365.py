"""Simple self-training (arXiv 2308.01300): Deformable DETR R50 on Objects365 images.

A teacher trained on COCO labels the images; the student learns its 30 best boxes an image and
their classes, then is fine-tuned on COCO. No label of Objects365 is used.

    tools/pseudo_label.py --config-file configs/deformable_detr_two_stage_r50_coco_50ep.py \\
        --weights TEACHER --images datasets/objects365/train --output output/o365_pseudo_labels \\
        --num-gpus 8
Run: tools/lazyconfig_train_net.py --config-file configs/selftrain_o365.py --num-gpus 8
    tools/lazyconfig_train_net.py --num-gpus 8 train.reinit=auto \\
        --config-file configs/deformable_detr_two_stage_r50_coco_50ep.py \\
        train.init_checkpoint=output/selftrain_o365/checkpoints/last.pth
Schedule: 5 epochs x 54_446 steps (1_742_289 images in batches of 32) = 272_230 steps; a tenth of
the learning rate after 4 epochs = 217_784 steps.

From the paper's text that we have: data, teacher, top-30 boxes, pseudo-classes, one round. Ours,
because it does not tell: two-stage variant; length, learning rate and batch (DETReg's and those of
Deformable DETR); backbone frozen if and only if its weights are pre-trained
(`model.freeze_backbone`); class head kept for fine-tuning if and only if the ordered class names
are equal (`train.reinit=auto`).
For the variant "confidence above 0.5": data.selection.top_k=None data.selection.score_threshold=0.5
"""

from .common.models.deformable_detr import two_stage as model
from .common.optim import optimizer
from .common.schedule import constant as lr_multiplier
from .common.schedule import set_length
from .common.self_training import data, dataloader, pretrain
from .common.train import train

model = pretrain(model)

data.unlabeled.source = "datasets/objects365/train"
data.store = "output/o365_pseudo_labels"
dataloader.train.total_batch_size = 32

optimizer.lr = 2e-4
optimizer.params.lr_factors = {"sampling_offsets": 0.1}  # the backbone is frozen

train.output_dir = "output/selftrain_o365"
set_length(train, lr_multiplier, epoch=1_742_289 // 32, epochs=5, drop=4)
train.checkpoint_period = 5_000
