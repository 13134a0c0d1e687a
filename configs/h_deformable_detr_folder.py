"""H-Deformable DETR R50 on one's own labelled images: teacher, fine-tuning, baseline.

Takes only paths; the format is detected and the classes come from the data. Up to 250 objects an
image; for more raise model.queries.num_one_to_many.

Run: tools/lazyconfig_train_net.py --config-file configs/h_deformable_detr_folder.py --num-gpus 1 \\
    data.train.source=DATA data.train.split=train data.test.source=DATA data.test.split=val
Fine-tune: the same with train.init_checkpoint=PRETRAINED train.reinit=auto

The backbone starts from torchvision's ImageNet weights (downloaded once). Length and batch are
ours, for a few hundred labelled images on one GPU.
"""

from .common.models.h_deformable_detr import model
from .deformable_detr_folder import data, dataloader, lr_multiplier, optimizer, train

train.output_dir = "output/folder/h_deformable_detr"
