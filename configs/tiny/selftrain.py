"""Self-training of the tiny two-stage Deformable DETR on a store of pseudo-labels.

Run: tools/lazyconfig_train_net.py --config-file configs/tiny/selftrain.py --num-gpus 0 \\
    data.unlabeled.source=IMAGES data.store=STORE
"""

from ..common.self_training import data, pretrain
from ..common.self_training import dataloader as _unlabeled
from .deformable_detr import dataloader, lr_multiplier, model, optimizer, train

model = pretrain(model)
dataloader.train.dataset = _unlabeled.train.dataset
dataloader.test = None

train.output_dir = "output/tiny/selftrain"
