"""AlignDet of the tiny DETR on proposals, for a CPU, nothing downloaded.

Run: tools/lazyconfig_train_net.py --config-file configs/tiny/align_det_detr.py --num-gpus 0 \\
    data.unlabeled.source=IMAGES data.store=STORE
Then configs/tiny/detr.py with train.reinit=[last-layers]; see configs/tiny/align_det.py.
"""

from ..common.align_det import pretrain, shorten
from .align_det import data, dataloader, lr_multiplier, train
from .detr import model, optimizer

model = pretrain(model)
model.hidden_dim = 128
shorten(model)

train.output_dir = "output/tiny/align_det_detr"
