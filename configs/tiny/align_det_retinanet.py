"""AlignDet of the tiny RetinaNet of torchvision on proposals, for a CPU, nothing downloaded.

Run: tools/lazyconfig_train_net.py --config-file configs/tiny/align_det_retinanet.py --num-gpus 0 \\
    data.unlabeled.source=IMAGES data.store=STORE
Then configs/tiny/retinanet.py with train.reinit=[last-layers]; see configs/tiny/align_det.py.
"""

from ..common.align_det import pretrain_pyramid, shorten
from .align_det import data, dataloader, lr_multiplier, train
from .retinanet import model, optimizer

model = pretrain_pyramid(model, hidden_dim=128, max_regions=512)
shorten(model)

train.output_dir = "output/tiny/align_det_retinanet"
train.clip_grad_norm = 10.0
