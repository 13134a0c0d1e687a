"""DETReg of the tiny two-stage Deformable DETR, for a CPU, nothing downloaded.

Backbone and encoder are those of image-domain pre-training on the same images:

    tools/lazyconfig_train_net.py --config-file configs/tiny/image_domain.py --num-gpus 0 \\
        data.unlabeled.source=SCENES data.unlabeled.split=train
Run: tools/lazyconfig_train_net.py --config-file configs/tiny/detreg.py --num-gpus 0 \\
    data.unlabeled.source=SCENES \\
    model.detector.backbone.weights=output/tiny/image_domain/checkpoints/last.pth
Then: configs/tiny/deformable_detr.py with train.reinit=auto
    train.init_checkpoint=output/tiny/detreg/checkpoints/last.pth
"""

from ..common.detreg import choices, data, dataloader, pretrain
from .deformable_detr import dataloader as _labelled
from .deformable_detr import lr_multiplier, model, optimizer, train

model = pretrain(model)

data.unlabeled.source = data.test.source = "datasets/scenes"
data.unlabeled.split, data.test.split = "train", "test"
data.boxes.num, data.patches.size = 10, 64
dataloader.train.mapper.augmentation = _labelled.train.mapper.augmentation
dataloader.train.total_batch_size = 8
dataloader.train.num_workers = 1
dataloader.test = _labelled.test

train.output_dir = "output/tiny/detreg"
