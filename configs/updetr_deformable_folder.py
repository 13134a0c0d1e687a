"""UP-DETR of a one-stage Deformable DETR R50 on a folder of one's own unlabelled images.

As `configs/updetr_folder.py`, which says where the backbone comes from; patches are added to the
content of the queries, for their position says where a query looks (decision 16).

Run: tools/lazyconfig_train_net.py --config-file configs/updetr_deformable_folder.py --num-gpus 1 \\
    data.unlabeled.source=IMAGES
Fine-tune: configs/deformable_detr_one_stage_folder.py with train.reinit=auto
    optimizer.params.lr_factors.backbone=0.5
    train.init_checkpoint=output/folder/updetr_deformable/checkpoints/last.pth
"""

from .common.models.deformable_detr import one_stage as model
from .common.up_detr import pretrain
from .updetr_folder import choices, data, dataloader, lr_multiplier, optimizer, train

model = pretrain(model)
model.add_to = "content"

optimizer.params.lr_factors = {"sampling_offsets": 0.1, "reference_points": 0.1}

train.output_dir = "output/folder/updetr_deformable"
