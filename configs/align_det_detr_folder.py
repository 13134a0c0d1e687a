"""AlignDet of a DETR R50 on a folder of one's own unlabelled images.

As `configs/align_det_folder.py`, of which it takes data, length and batch.

Run: tools/lazyconfig_train_net.py --num-gpus 1 data.unlabeled.source=IMAGES data.store=STORE \\
    --config-file configs/align_det_detr_folder.py
Then configs/detr_folder.py with train.reinit=[last-layers] and
    train.init_checkpoint=output/folder/align_det_detr/checkpoints/last.pth
"""

from .align_det_folder import data, dataloader, lr_multiplier, optimizer, train
from .common.align_det import pretrain
from .common.models.detr import model

model = pretrain(model)

optimizer.params.lr_factors = {}

train.output_dir = "output/folder/align_det_detr"
