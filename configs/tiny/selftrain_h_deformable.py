"""Self-training of the tiny H-Deformable DETR on a store of pseudo-labels.

Run: tools/lazyconfig_train_net.py --num-gpus 0 \\
    --config-file configs/tiny/selftrain_h_deformable.py \\
    data.unlabeled.source=IMAGES data.store=STORE
"""

from ..common.self_training import pretrain
from .h_deformable_detr import lr_multiplier, model, optimizer, train
from .selftrain import data, dataloader

model = pretrain(model)

train.output_dir = "output/tiny/selftrain_h_deformable"
