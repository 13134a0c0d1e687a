"""AlignDet (arXiv 2307.11077): DETR with a ResNet-50 on the proposals of COCO's training images.

The classes are cluster ids of the proposals; `projects/align_det/README.md` tells how the store is
made. The backbone has ImageNet weights and is frozen; everything else is trained.

Run: tools/lazyconfig_train_net.py --config-file configs/align_det_detr_r50_coco.py \\
        --num-gpus 8 data.store=STORE
Then: configs/align_det_finetune_detr_r50_coco_150ep.py
Length: 50 epochs of 118_287 // 64 = 1_848 steps, a tenth of the learning rate after 40.
"""

from .common.align_det import data, dataloader, pretrain
from .common.models.detr import model
from .common.optim import optimizer
from .common.schedule import constant as lr_multiplier
from .common.schedule import set_length
from .common.train import train

model = pretrain(model)

data.unlabeled.source, data.unlabeled.split = "datasets/coco", "train2017"
data.store = "output/coco_proposals_clustered"
data.selection.top_k = 50
dataloader.train.total_batch_size = 64

optimizer.lr = 2e-4
optimizer.params.lr_factors = {}  # the backbone is frozen

train.output_dir = "output/align_det_detr_r50_coco"
set_length(train, lr_multiplier, epoch=118_287 // 64, epochs=50, drop=40)
