"""Pre-training of the tiny DETR on boxes of any source; as `configs/tiny/pretrain.py`.

Run: tools/lazyconfig_train_net.py --config-file configs/tiny/pretrain_detr.py --num-gpus 0 \\
    data.unlabeled.source=SCENES data.unlabeled.split=train
"""

from ..common.pretext import pretrain
from .detr import lr_multiplier, model, optimizer, train
from .pretrain import choices, data, dataloader

model = pretrain(model)

train.output_dir = "output/tiny/pretrain_detr"
