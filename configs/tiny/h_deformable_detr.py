"""H-Deformable DETR for 128-pixel images on a CPU, nothing downloaded: ResNet-18 with GroupNorm.

Run: tools/lazyconfig_train_net.py --config-file configs/tiny/h_deformable_detr.py --num-gpus 0 \\
    data.train.source=SCENES data.test.source=SCENES
"""

from ..common.models.h_deformable_detr import model
from .deformable_detr import data, dataloader, lr_multiplier, optimizer, train
from .deformable_detr import model as _two_stage

model.backbone = _two_stage.backbone
model.transformer = _two_stage.transformer
model.queries.hidden_dim = _two_stage.queries.hidden_dim
model.queries.num_queries = _two_stage.queries.num_queries
model.queries.num_one_to_many = 60  # ten objects an image; 96-pixel images have 193 tokens

train.output_dir = "output/tiny/h_deformable_detr"
