"""Self-training of an H-Deformable DETR R50 on a folder of one's own unlabelled images.

As `configs/selftrain_folder.py`, for fine-tuning with `configs/h_deformable_detr_folder.py`.

Run: tools/lazyconfig_train_net.py --num-gpus 1 \\
    --config-file configs/selftrain_h_deformable_folder.py \\
    data.unlabeled.source=IMAGES data.store=STORE
The whole chain: tools/self_train.py --detector-config configs/h_deformable_detr_folder.py \\
    --pretrain-config configs/selftrain_h_deformable_folder.py ...
"""

from .common.models.h_deformable_detr import model
from .common.self_training import pretrain
from .selftrain_folder import data, dataloader, lr_multiplier, optimizer, train

model = pretrain(model)

train.output_dir = "output/folder/selftrain_h_deformable"
