"""DETReg of an H-Deformable DETR R50 on a folder of one's own unlabelled images.

As `configs/detreg_folder.py`, which says where the backbone comes from, for
`configs/h_deformable_detr_folder.py` to fine-tune.

Run: tools/lazyconfig_train_net.py --config-file configs/detreg_h_deformable_folder.py \\
    --num-gpus 1 data.unlabeled.source=IMAGES
"""

from .common.detreg import pretrain
from .common.models.h_deformable_detr import model
from .detreg_folder import choices, data, dataloader, lr_multiplier, optimizer, train

model = pretrain(model)

train.output_dir = "output/folder/detreg_h_deformable"
