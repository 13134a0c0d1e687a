"""AlignDet of the tiny FCOS of torchvision on proposals, for a CPU, nothing downloaded.

Run: tools/lazyconfig_train_net.py --config-file configs/tiny/align_det_fcos.py --num-gpus 0 \\
    data.unlabeled.source=IMAGES data.store=STORE
Then configs/tiny/fcos.py with train.reinit=[last-layers]; see configs/tiny/align_det.py.
"""

from ..common.align_det import pretrain_pyramid, shorten
from .align_det import data, dataloader, lr_multiplier, train
from .fcos import model, optimizer

model = pretrain_pyramid(model, hidden_dim=128, max_regions=512)
shorten(model)

train.output_dir = "output/tiny/align_det_fcos"
train.clip_grad_norm = 10.0
