"""Image-domain pre-training of the tiny detectors' ResNet-18, for a CPU, nothing downloaded.

Run: tools/lazyconfig_train_net.py --config-file configs/tiny/image_domain.py --num-gpus 0 \\
    data.unlabeled.source=IMAGES
Then: tools/lazyconfig_train_net.py --config-file configs/tiny/deformable_detr.py --num-gpus 0 \\
    model.backbone.weights=output/tiny/image_domain/checkpoints/last.pth ...
"""

from ..common.image_domain import data, dataloader, optimizer, pretrain
from .deformable_detr import lr_multiplier, model, train

model = pretrain(model.backbone)

data.unlabeled.source = "datasets/scenes"
data.view.size = 64
dataloader.train.total_batch_size = 16
dataloader.train.num_workers = 1

train.output_dir = "output/tiny/image_domain"
train.clip_grad_norm = 5.0
