"""SwAV pre-training of a ResNet-50 on a folder of one's own unlabelled images.

As `configs/image_domain_folder.py`, by another method: eight views instead of two make a step three
times as long. Prototypes and queue are for some thousand images of some ten kinds.

Run: tools/lazyconfig_train_net.py --config-file configs/swav_folder.py --num-gpus 1 \\
    data.unlabeled.source=IMAGES
Then, in the config of any detector with a ResNet-50:
    model.backbone.weights=output/folder/swav/checkpoints/last.pth
With several GPUs, or few images a GPU: model.backbone.norm=sync_bn.

Ours: length, batch and optimiser.
"""

from .common.models.deformable_detr import two_stage as model
from .common.swav import data, dataloader, optimizer, pretrain
from .image_domain_folder import lr_multiplier, train

model = pretrain(model.backbone)
model.backbone.weights = None
model.backbone.norm = "bn"
model.backbone.freeze_at = 0
model.num_prototypes = 300
model.queue_length = 640
model.queue_start = 1_000
model.frozen_passes = 100

dataloader.train.total_batch_size = 64

train.output_dir = "output/folder/swav"
