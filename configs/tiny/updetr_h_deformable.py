"""UP-DETR on the tiny H-Deformable DETR, on a CPU, nothing downloaded.

Run: tools/lazyconfig_train_net.py --config-file configs/tiny/updetr_h_deformable.py --num-gpus 0 \\
    data.unlabeled.source=SCENES data.unlabeled.split=train data.test.split=test
"""

from ..common.up_detr import pretrain
from .h_deformable_detr import lr_multiplier, model, optimizer, train
from .updetr import choices, data, dataloader

model = pretrain(model)
model.standardize = True
model.add_to = "content"

train.output_dir = "output/tiny/updetr_h_deformable"
