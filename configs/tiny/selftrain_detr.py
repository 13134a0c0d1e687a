"""Self-training of the tiny DETR on a store of pseudo-labels.

Run: tools/lazyconfig_train_net.py --config-file configs/tiny/selftrain_detr.py --num-gpus 0 \\
    data.unlabeled.source=IMAGES data.store=STORE
"""

from ..common.self_training import pretrain
from .detr import lr_multiplier, model, optimizer, train
from .selftrain import data, dataloader

model = pretrain(model)

train.output_dir = "output/tiny/selftrain_detr"
