"""AlignDet of the tiny H-Deformable DETR on proposals, for a CPU, nothing downloaded.

Run: tools/lazyconfig_train_net.py --num-gpus 0 data.unlabeled.source=IMAGES data.store=STORE \\
    --config-file configs/tiny/align_det_h_deformable.py
Then configs/tiny/h_deformable_detr.py with train.reinit=[last-layers]; see align_det.py.
"""

from ..common.align_det import pretrain, shorten
from .align_det import data, dataloader, lr_multiplier, train
from .h_deformable_detr import model, optimizer

model = pretrain(model)
model.hidden_dim = 128
shorten(model)

train.output_dir = "output/tiny/align_det_h_deformable"
