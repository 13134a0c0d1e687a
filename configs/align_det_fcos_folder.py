"""AlignDet of torchvision's FCOS R50 on a folder of one's own unlabelled images.

As `configs/align_det_folder.py`, of which it takes data, length and batch.

Run: tools/lazyconfig_train_net.py --num-gpus 1 data.unlabeled.source=IMAGES data.store=STORE \\
    --config-file configs/align_det_fcos_folder.py
Then configs/fcos_folder.py with train.reinit=[last-layers] and
    train.init_checkpoint=output/folder/align_det_fcos/checkpoints/last.pth
"""

from .align_det_folder import data, dataloader, lr_multiplier, train
from .common.align_det import pretrain_pyramid
from .fcos_folder import model, optimizer

model = pretrain_pyramid(model, hidden_dim=256, max_regions=4096)

train.output_dir = "output/folder/align_det_fcos"
train.clip_grad_norm = 10.0
lr_multiplier.warmup_steps = 500
