"""DETReg of a two-stage Deformable DETR R50 on a folder of one's own unlabelled images.

Takes only the path of the images; boxes are searched while training.

Run: tools/lazyconfig_train_net.py --config-file configs/detreg_folder.py --num-gpus 1 \\
    data.unlabeled.source=IMAGES
Fine-tune: configs/deformable_detr_folder.py with train.reinit=auto
    train.init_checkpoint=output/folder/detreg/checkpoints/last.pth

Backbone and encoder start from torchvision's ImageNet weights (downloaded once); for images that
these do not fit, from configs/image_domain_folder.py: both take
    model.detector.backbone.weights=output/folder/image_domain/checkpoints/last.pth
The backbone is frozen. Ours: length and batch, for a few thousand images on one GPU.
"""

from .common.detreg import choices, data, dataloader, pretrain
from .common.models.deformable_detr import two_stage as model
from .common.optim import optimizer
from .common.schedule import constant as lr_multiplier
from .common.train import train

model = pretrain(model)

dataloader.train.total_batch_size = 8

optimizer.lr = 1e-4
optimizer.params.lr_factors = {"sampling_offsets": 0.1}  # the backbone is frozen

train.output_dir = "output/folder/detreg"
train.max_iter = 20_000
lr_multiplier.max_iter = train.max_iter
lr_multiplier.drop_steps = [16_000]
train.checkpoint_period = 500
