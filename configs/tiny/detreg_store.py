"""DETReg of the tiny one-stage Deformable DETR on regions out of a store, nothing downloaded.

Boxes are those that `configs/tiny/detreg_one_stage.py` searches while training, found once for all
runs. As `configs/tiny/detreg.py`, which says where the backbone comes from.

    tools/extract_proposals.py --recipe detreg --images SCENES --split train --output STORE
Run: tools/lazyconfig_train_net.py --config-file configs/tiny/detreg_store.py --num-gpus 0 \\
    data.unlabeled.source=SCENES data.store=STORE \\
    model.detector.backbone.weights=output/tiny/image_domain/checkpoints/last.pth
"""

from ..common.pretext import stored_regions as _boxes
from .detreg_one_stage import data, dataloader, lr_multiplier, model, optimizer, train

dataloader.train.mapper.boxes = _boxes

train.output_dir = "output/tiny/detreg_store"
