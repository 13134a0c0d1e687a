"""DETReg (arXiv 2106.04550): Deformable DETR R50 on the images of ImageNet-100, no labels.

The paper's main run, one-stage. Boxes are the 30 first of Selective Search at 128x128, in a new
order each epoch; the encoder is SwAV's ResNet-50, as is the detector's frozen backbone.

    weights/swav_800ep_pretrain.pth.tar   from https://github.com/facebookresearch/swav
    datasets/imagenet/train/n01558993/... of which the 100 classes are taken
Run: tools/lazyconfig_train_net.py --config-file configs/detreg_in100.py --num-gpus 8
Then fine-tune with configs/detreg_finetune_coco_50ep.py or configs/detreg_finetune_voc_100ep.py.
Schedule: 50 epochs x 659 steps (126_689 images in batches of 192) = 32_950 steps; a tenth of
the learning rate after 40 epochs = 26_360 steps.
Batches of 24 a GPU are the code's; the paper has 28. Not trained by us yet.
"""

from .common.detreg import SWAV, choices, data, dataloader, pretrain
from .common.imagenet100 import folders
from .common.models.deformable_detr import one_stage as model
from .common.optim import optimizer
from .common.schedule import constant as lr_multiplier
from .common.schedule import set_length
from .common.train import train

model = pretrain(model)
model.detector.backbone.weights = SWAV

data.unlabeled.source, data.unlabeled.split = "datasets/imagenet", "train"
data.unlabeled.folders = folders

optimizer.lr = 2e-4
# The backbone is frozen.
optimizer.params.lr_factors = {"sampling_offsets": 0.1, "reference_points": 0.1}

train.output_dir = "output/detreg_in100"
set_length(train, lr_multiplier, epoch=126_689 // 192, epochs=50, drop=40)
