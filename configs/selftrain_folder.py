"""Self-training of a two-stage Deformable DETR R50 on a folder of one's own unlabelled images.

Takes only paths: the images, and the store that tools/pseudo_label.py wrote for them.

Run: tools/lazyconfig_train_net.py --config-file configs/selftrain_folder.py --num-gpus 1 \\
    data.unlabeled.source=IMAGES data.store=STORE
Then fine-tune with configs/deformable_detr_folder.py; tools/self_train.py does it all.

Ours: length and batch, for a few thousand images on one GPU. The backbone has ImageNet weights and
is frozen, as `configs/selftrain_o365.py` explains.
"""

from .common.models.deformable_detr import two_stage as model
from .common.optim import optimizer
from .common.schedule import constant as lr_multiplier
from .common.self_training import data, dataloader, pretrain
from .common.train import train

model = pretrain(model)

dataloader.train.total_batch_size = 8
dataloader.test = None

optimizer.lr = 1e-4
optimizer.params.lr_factors = {"sampling_offsets": 0.1}  # the backbone is frozen

train.output_dir = "output/folder/selftrain"
train.max_iter = 20_000
lr_multiplier.max_iter = train.max_iter
lr_multiplier.drop_steps = [16_000]
train.checkpoint_period = 500
