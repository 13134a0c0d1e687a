"""AlignDet of a two-stage Deformable DETR R50 on a folder of one's own unlabelled images.

Takes only paths: the images, and a store of proposals for them, which tools/extract_proposals.py
makes; clustered (tools/cluster_regions.py), its cluster ids are the classes.

Run: tools/lazyconfig_train_net.py --config-file configs/align_det_folder.py --num-gpus 1 \\
    data.unlabeled.source=IMAGES data.store=STORE
Then configs/deformable_detr_folder.py with train.reinit=[last-layers] and
    train.init_checkpoint=output/folder/align_det/checkpoints/last.pth

Ours: length and batch, for a few thousand images on one GPU. The backbone has ImageNet weights and
is frozen; for one of one's own (configs/image_domain_folder.py):
    model.detector.backbone.weights=output/folder/image_domain/checkpoints/last.pth \\
    model.detector.backbone.norm=bn
"""

from .common.align_det import data, dataloader, pretrain
from .common.models.deformable_detr import two_stage as model
from .common.optim import optimizer
from .common.schedule import constant as lr_multiplier
from .common.train import train

model = pretrain(model)

data.unlabeled.source = "datasets/mine"
dataloader.train.total_batch_size = 8

optimizer.lr = 1e-4
optimizer.params.lr_factors = {"sampling_offsets": 0.1}  # the backbone is frozen

train.output_dir = "output/folder/align_det"
train.max_iter = 20_000
lr_multiplier.max_iter = train.max_iter
lr_multiplier.drop_steps = [16_000]
train.checkpoint_period = 500
