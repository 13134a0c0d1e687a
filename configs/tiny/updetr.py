"""UP-DETR on the tiny DETR: find patches of 128-pixel images, on a CPU, nothing downloaded.

Run: tools/lazyconfig_train_net.py --config-file configs/tiny/updetr.py --num-gpus 0 \\
    data.unlabeled.source=SCENES data.unlabeled.split=train data.test.split=test
Look: tools/evaluate_patches.py --config-file configs/tiny/updetr.py --weights LAST ...
Then: configs/tiny/detr.py with train.reinit=auto model.transformer.pre_norm=True
    train.init_checkpoint=output/tiny/updetr/checkpoints/last.pth
"""

from ..common.up_detr import choices, data, dataloader, pretrain
from .detr import lr_multiplier, model, optimizer, train

model.transformer.pre_norm = True
model = pretrain(model)
model.standardize = True

data.unlabeled.source = "datasets/scenes"
data.unlabeled.split, data.test.split = "train", "test"
data.boxes.num, data.patches.size = 5, 64
dataloader.train.mapper.augmentation.short_sides = [96, 104, 112, 120, 128]
dataloader.train.mapper.augmentation.max_size = 160
dataloader.train.total_batch_size = 8
dataloader.train.num_workers = 1
dataloader.test.mapper.augmentation.short_sides = [128]
dataloader.test.mapper.augmentation.max_size = 160

train.output_dir = "output/tiny/updetr"
