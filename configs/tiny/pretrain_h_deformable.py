"""Pre-training of the tiny H-Deformable DETR on boxes of any source; as `configs/tiny/pretrain.py`.

Run: tools/lazyconfig_train_net.py --num-gpus 0 \\
    --config-file configs/tiny/pretrain_h_deformable.py \\
    data.unlabeled.source=SCENES data.unlabeled.split=train
"""

from ..common.pretext import pretrain
from .h_deformable_detr import lr_multiplier, model, optimizer, train
from .pretrain import choices, data, dataloader

model = pretrain(model)

train.output_dir = "output/tiny/pretrain_h_deformable"
