"""DETReg of the tiny one-stage Deformable DETR, for a CPU, nothing downloaded.

As `configs/tiny/detreg.py`, which says where the backbone comes from.

Run: tools/lazyconfig_train_net.py --config-file configs/tiny/detreg_one_stage.py --num-gpus 0 \\
    data.unlabeled.source=SCENES \\
    model.detector.backbone.weights=output/tiny/image_domain/checkpoints/last.pth
Then: configs/tiny/deformable_detr_one_stage.py with train.reinit=auto
    train.init_checkpoint=output/tiny/detreg_one_stage/checkpoints/last.pth
"""

from ..common.detreg import pretrain
from .deformable_detr_one_stage import lr_multiplier, model, optimizer, train
from .detreg import choices, data, dataloader

model = pretrain(model)

train.output_dir = "output/tiny/detreg_one_stage"
