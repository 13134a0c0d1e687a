"""Two-stage Deformable DETR for photographs at 240 pixels on a CPU, nothing downloaded.

The tiny detector with images of 240 pixels' short side and more queries: for a first look at
one's own images without a GPU and without weights.

Run: tools/lazyconfig_train_net.py --config-file configs/small/deformable_detr.py --num-gpus 0 \\
    data.train.source=DATA data.train.split=train data.test.source=DATA data.test.split=val
"""

from ..tiny.deformable_detr import data, dataloader, lr_multiplier, model, optimizer, train

model.queries.num_queries = 100

_augmentation = dataloader.train.mapper.augmentation
_augmentation.short_sides = [192, 208, 224, 240, 256]
_augmentation.max_size = 400
_augmentation.crop_short_sides = [240, 272, 304]
_augmentation.crop_size = [144, 240]
dataloader.train.total_batch_size = 4
dataloader.test.mapper.augmentation.short_sides = [240]
dataloader.test.mapper.augmentation.max_size = 400
dataloader.test.batch_size = 4

data.train.source = data.test.source = "datasets/photographs"
data.train.split, data.test.split = "train", "val"

optimizer.lr = 2e-4

train.output_dir = "output/small/deformable_detr"
train.max_iter = 1500
lr_multiplier.max_iter = train.max_iter
lr_multiplier.drop_steps = [1250]
