"""DETReg of the tiny DETR, for a CPU, nothing downloaded; as `configs/tiny/detreg.py`.

Run: tools/lazyconfig_train_net.py --config-file configs/tiny/detreg_detr.py --num-gpus 0 \\
    data.unlabeled.source=SCENES \\
    model.detector.backbone.weights=output/tiny/image_domain/checkpoints/last.pth
Then: configs/tiny/detr.py with train.reinit=auto
    train.init_checkpoint=output/tiny/detreg_detr/checkpoints/last.pth
"""

from ..common.detreg import pretrain
from .detr import lr_multiplier, model, optimizer, train
from .detreg import choices, data, dataloader

model = pretrain(model)

train.output_dir = "output/tiny/detreg_detr"
