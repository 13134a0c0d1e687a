"""FCOS of torchvision with a ResNet-50 on one's own labelled images.

Takes only paths; as `configs/faster_rcnn_folder.py`, of which it takes data, length and batch.

Run: tools/lazyconfig_train_net.py --config-file configs/fcos_folder.py --num-gpus 1 \\
    data.train.source=DATA data.train.split=train data.test.source=DATA data.test.split=val
Fine-tune: the same with train.init_checkpoint=PRETRAINED train.reinit=[last-layers]
"""

from .common.models.torchvision_detectors import fcos as model
from .faster_rcnn_folder import data, dataloader, lr_multiplier, optimizer, train

optimizer.lr = 0.005
train.output_dir = "output/folder/fcos"
