"""DETReg of the small two-stage Deformable DETR, for photographs on a CPU, nothing downloaded.

Backbone and encoder are those of image-domain pre-training on the same images.

Run: tools/lazyconfig_train_net.py --config-file configs/small/detreg.py --num-gpus 0 \\
    data.unlabeled.source=IMAGES \\
    model.detector.backbone.weights=output/small/image_domain/checkpoints/last.pth
Then: configs/small/deformable_detr.py with train.reinit=auto
    train.init_checkpoint=output/small/detreg/checkpoints/last.pth
"""

from ..common.detreg import choices, data, dataloader, pretrain
from .deformable_detr import dataloader as _labelled
from .deformable_detr import lr_multiplier, model, optimizer, train

model = pretrain(model)

data.unlabeled.source = data.test.source = "datasets/photographs"
data.test.split = "val"
data.patches.size = 64
dataloader.train.mapper.augmentation = _labelled.train.mapper.augmentation
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = 1
dataloader.test = _labelled.test

train.output_dir = "output/small/detreg"
