"""DETR for 128-pixel images on a CPU, nothing downloaded: ResNet-18 with GroupNorm.

Run: tools/lazyconfig_train_net.py --config-file configs/tiny/detr.py --num-gpus 0 \\
    data.train.source=SCENES data.test.source=SCENES
"""

from ..common.models.detr import model
from .deformable_detr import data, dataloader, lr_multiplier, optimizer, train

model.backbone.depth = 18
model.backbone.weights = None
model.backbone.norm = "gn"
model.backbone.freeze_at = 0
model.transformer.hidden_dim = 128
model.transformer.num_encoder_layers = model.transformer.num_decoder_layers = 2
model.transformer.ffn_dim = 256
model.transformer.dropout = 0.0
model.num_queries = 25

optimizer.params.lr_factors = {}
train.output_dir = "output/tiny/detr"
