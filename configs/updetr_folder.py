"""UP-DETR of a DETR R50 on a folder of one's own unlabelled images.

Takes only the path of the images.

Run: tools/lazyconfig_train_net.py --config-file configs/updetr_folder.py --num-gpus 1 \\
    data.unlabeled.source=IMAGES
Fine-tune: configs/detr_folder.py with train.reinit=auto model.transformer.pre_norm=True
    optimizer.params.lr_factors.backbone=0.5
    train.init_checkpoint=output/folder/updetr/checkpoints/last.pth

The backbone starts from torchvision's ImageNet weights (downloaded once) and is frozen; for images
that these do not fit, from configs/image_domain_folder.py:
    model.detector.backbone.weights=output/folder/image_domain/checkpoints/last.pth
Ours: length and batch, for a few thousand images on one GPU.
"""

from .common.models.detr import model
from .common.optim import optimizer
from .common.schedule import constant as lr_multiplier
from .common.train import train
from .common.up_detr import choices, data, dataloader, pretrain

model.transformer.pre_norm = True
model = pretrain(model)

dataloader.train.total_batch_size = 16

optimizer.params.lr_factors = {}  # the backbone is frozen

train.output_dir = "output/folder/updetr"
train.max_iter = 20_000
lr_multiplier.max_iter = train.max_iter
lr_multiplier.drop_steps = [16_000]
train.checkpoint_period = 500
