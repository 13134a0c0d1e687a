"""SwAV pre-training of the tiny detectors' ResNet-18, for a CPU, nothing downloaded.

Run: tools/lazyconfig_train_net.py --config-file configs/tiny/swav.py --num-gpus 0 \\
    data.unlabeled.source=IMAGES
Then: tools/lazyconfig_train_net.py --config-file configs/tiny/deformable_detr.py --num-gpus 0 \\
    model.backbone.weights=output/tiny/swav/checkpoints/last.pth ...
"""

from ..common.swav import data, dataloader, optimizer, pretrain
from .deformable_detr import lr_multiplier, model, train

model = pretrain(model.backbone)
model.num_prototypes = 60
model.hidden_dim = 512
model.queue_length = 128
model.queue_start = 30
model.frozen_passes = 10

data.unlabeled.source = "datasets/scenes"
data.view.size, data.view.small_size = 64, 32
dataloader.train.mapper.views = dataloader.train.mapper.views[:6]  # four small ones
dataloader.train.total_batch_size = 16
dataloader.train.num_workers = 1

train.output_dir = "output/tiny/swav"
train.clip_grad_norm = 5.0
