"""DETReg of the tiny H-Deformable DETR, for a CPU, nothing downloaded; as `configs/tiny/detreg.py`.

Run: tools/lazyconfig_train_net.py --config-file configs/tiny/detreg_h_deformable.py --num-gpus 0 \\
    data.unlabeled.source=SCENES \\
    model.detector.backbone.weights=output/tiny/image_domain/checkpoints/last.pth
Then: configs/tiny/h_deformable_detr.py with train.reinit=auto
    train.init_checkpoint=output/tiny/detreg_h_deformable/checkpoints/last.pth
"""

from ..common.detreg import pretrain
from .detreg import choices, data, dataloader
from .h_deformable_detr import lr_multiplier, model, optimizer, train

model = pretrain(model)

train.output_dir = "output/tiny/detreg_h_deformable"
