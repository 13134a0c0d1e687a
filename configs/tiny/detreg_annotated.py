"""DETReg of the tiny one-stage Deformable DETR on annotated boxes, their classes hidden: a bound.

As `configs/tiny/detreg.py`, which says where the backbone comes from.

Run: tools/lazyconfig_train_net.py --config-file configs/tiny/detreg_annotated.py --num-gpus 0 \\
    data.unlabeled.source=SCENES \\
    model.detector.backbone.weights=output/tiny/image_domain/checkpoints/last.pth
"""

from ..common.pretext import annotated as _annotated
from ..common.pretext import dataset_boxes as _boxes
from .detreg_one_stage import data, dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset = _annotated
dataloader.train.mapper.boxes = _boxes

train.output_dir = "output/tiny/detreg_annotated"
