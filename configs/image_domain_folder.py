"""Image-domain pre-training of a ResNet-50 on a folder of one's own unlabelled images.

For images that no published weights fit. The backbone starts from random weights with trainable
batch normalisation; start from ImageNet's with model.backbone.weights=torchvision.

Run: tools/lazyconfig_train_net.py --config-file configs/image_domain_folder.py --num-gpus 1 \\
    data.unlabeled.source=IMAGES
Then, in the config of any detector with a ResNet-50:
    model.backbone.weights=output/folder/image_domain/checkpoints/last.pth
With several GPUs, or few images a GPU: model.backbone.norm=sync_bn.

Ours: everything; a few thousand images and one GPU are in mind.
"""

from .common.image_domain import data, dataloader, optimizer, pretrain
from .common.models.deformable_detr import two_stage as model
from .common.schedule import constant as lr_multiplier
from .common.train import train

model = pretrain(model.backbone)
model.backbone.weights = None
model.backbone.norm = "bn"
model.backbone.freeze_at = 0

dataloader.train.total_batch_size = 64

train.output_dir = "output/folder/image_domain"
train.max_iter = 20_000
train.clip_grad_norm = 1.0
train.checkpoint_period = 500
lr_multiplier.max_iter = train.max_iter
lr_multiplier.warmup_steps = 200
lr_multiplier.drop_steps = [16_000]
