"""AlignDet: one-stage Deformable DETR with a ResNet-50 on the proposals of COCO's training images.

As published, classes are objectness alone: a store of Selective Search without clusters will do.
Objectness is learned by the focal loss, and matching has its cost; the published code has neither
and a contrast of weight 2 in their place.

Run: tools/lazyconfig_train_net.py --num-gpus 8 data.store=STORE \\
        --config-file configs/align_det_deformable_detr_r50_coco.py
Then: configs/align_det_finetune_deformable_detr_r50_coco_50ep.py
Length: 12 epochs of 118_287 // 32 = 3_696 steps, a tenth of the learning rate after 8 and again
after 11.
"""

from predet.d2 import LazyCall as L
from predet.pretext.semantic_targets import Objectness

from .common.align_det import data, dataloader, pretrain
from .common.models.deformable_detr import one_stage as model
from .common.optim import optimizer
from .common.schedule import constant as lr_multiplier
from .common.schedule import set_length
from .common.train import train

model = pretrain(model)
model.semantic_target = L(Objectness)()
model.weights.loss_contrast = 2.0

data.unlabeled.source, data.unlabeled.split = "datasets/coco", "train2017"
data.store = "output/coco_proposals"
data.selection.top_k = 150
dataloader.train.total_batch_size = 32

optimizer.lr = 2e-4
optimizer.params.lr_factors = {"sampling_offsets": 0.1, "reference_points": 0.1}

train.output_dir = "output/align_det_deformable_detr_r50_coco"
set_length(train, lr_multiplier, epoch=118_287 // 32, epochs=12, drop=8)
lr_multiplier.drop_steps = [8 * 3_696, 11 * 3_696]
