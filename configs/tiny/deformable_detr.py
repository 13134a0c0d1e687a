"""Two-stage Deformable DETR for 128-pixel images on a CPU, nothing downloaded.

ResNet-18 from random weights with GroupNorm, all of it trained; two encoder and two decoder
layers of 128 channels. The teacher, the student and the fine-tuned detector of `make demo`.

Run: tools/make_scenes.py --help, then
    tools/lazyconfig_train_net.py --config-file configs/tiny/deformable_detr.py --num-gpus 0 \\
        data.train.source=SCENES data.train.split=train data.test.source=SCENES data.test.split=test
"""

from ..common.data import data, dataloader
from ..common.models.deformable_detr import two_stage as model
from ..common.optim import optimizer
from ..common.schedule import constant as lr_multiplier
from ..common.train import train

model.backbone.depth = 18
model.backbone.weights = None
model.backbone.norm = "gn"
model.backbone.freeze_at = 0
model.transformer.hidden_dim = model.queries.hidden_dim = 128
model.transformer.num_encoder_layers = model.transformer.num_decoder_layers = 2
model.transformer.ffn_dim = 256
model.transformer.dropout = 0.0
model.queries.num_queries = 50

_augmentation = dataloader.train.mapper.augmentation
_augmentation.short_sides = [96, 104, 112, 120, 128]
_augmentation.max_size = 160
_augmentation.crop_short_sides = [112, 128, 144]
_augmentation.crop_size = [80, 120]
dataloader.train.total_batch_size = 8
dataloader.train.num_workers = 1
dataloader.test.mapper.augmentation.short_sides = [128]
dataloader.test.mapper.augmentation.max_size = 160
dataloader.test.batch_size = 16
dataloader.test.num_workers = 1

data.train.source = data.test.source = "datasets/scenes"
data.train.split, data.test.split = "train", "test"

optimizer.lr = 4e-4
optimizer.params.lr_factors = {"sampling_offsets": 0.1}

train.output_dir = "output/tiny/deformable_detr"
train.max_iter = 600
lr_multiplier.max_iter = train.max_iter
lr_multiplier.drop_steps = [500]
lr_multiplier.warmup_steps = 20
train.eval_period = 200
train.checkpoint_period = 200
