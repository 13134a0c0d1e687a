"""UP-DETR (arXiv 2011.09094): DETR R50 on the images of ImageNet-1k, no labels.

The paper's run. Ten random patches of each image, resized to 128 x 128, are added to a hundred
queries in ten groups; the detector learns to find them and to reconstruct their features. The
transformer is pre-norm, as of all published UP-DETR weights.

It needs datasets/imagenet (train/CLASS/IMAGE) and weights/swav_800ep_pretrain.pth.tar, of
https://github.com/facebookresearch/swav; the backbone is frozen.

Run: tools/lazyconfig_train_net.py --config-file configs/updetr_in1k.py --num-gpus 8
Look: tools/evaluate_patches.py --config-file configs/updetr_in1k.py \\
    --weights output/updetr_in1k/checkpoints/last.pth
Fine-tune: configs/updetr_finetune_*.py
Schedule: 60 epochs x 5_004 steps (1_281_167 images in batches of 256) = 300_240 steps; a tenth of
the learning rate after 40 epochs = 200_160 steps.
Published after fine-tuning: 42.8 AP on COCO (Table 2, 300 epochs). Not trained by us yet.
"""

from .common.models.detr import model
from .common.optim import optimizer
from .common.schedule import constant as lr_multiplier
from .common.schedule import set_length
from .common.train import train
from .common.up_detr import choices, data, dataloader, pretrain

model.backbone.weights = "weights/swav_800ep_pretrain.pth.tar"
model.transformer.pre_norm = True
model = pretrain(model)

data.unlabeled.source, data.unlabeled.split = "datasets/imagenet", "train"

optimizer.params.lr_factors = {}  # the backbone is frozen

train.output_dir = "output/updetr_in1k"
set_length(train, lr_multiplier, epoch=1_281_167 // 256, epochs=60, drop=40)
