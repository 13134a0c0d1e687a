"""AlignDet of the tiny two-stage Deformable DETR on proposals, for a CPU, nothing downloaded.

Run: tools/extract_proposals.py --images IMAGES --output STORE, then
    tools/lazyconfig_train_net.py --config-file configs/tiny/align_det.py --num-gpus 0 \\
        data.unlabeled.source=IMAGES data.store=STORE
Then: tools/lazyconfig_train_net.py --config-file configs/tiny/deformable_detr.py --num-gpus 0 \\
        train.init_checkpoint=output/tiny/align_det/checkpoints/last.pth \\
        train.reinit=[last-layers] ...
The backbone starts from random weights and is trained; one of configs/tiny/image_domain.py would
be frozen: model.detector.backbone.weights=output/tiny/image_domain/checkpoints/last.pth
"""

from ..common.align_det import data, dataloader, pretrain, shorten
from .deformable_detr import lr_multiplier, model, optimizer, train

model = pretrain(model)
model.hidden_dim = 128
shorten(model)

data.unlabeled.source = "datasets/scenes"
data.selection.top_k = 10
_resize = dataloader.train.mapper.augmentation.steps[0]
_resize.short_sides = [96, 104, 112, 120, 128]
_resize.max_size = 160
dataloader.train.total_batch_size = 8
dataloader.train.num_workers = 1

train.output_dir = "output/tiny/align_det"
