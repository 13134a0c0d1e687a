"""Simple self-training (arXiv 2308.01300): Deformable DETR R50 on the images of ImageNet-1k.

As `configs/selftrain_o365.py`, which says what is the paper's and what ours, on other images. No
label of ImageNet is used by the detector; the backbone's weights have seen them.

    tools/pseudo_label.py --config-file configs/deformable_detr_two_stage_r50_coco_50ep.py \\
        --weights TEACHER --images datasets/imagenet --split train \\
        --output output/in1k_pseudo_labels --num-gpus 8
Run: tools/lazyconfig_train_net.py --config-file configs/selftrain_in1k.py --num-gpus 8
    tools/lazyconfig_train_net.py --num-gpus 8 train.reinit=auto \\
        --config-file configs/deformable_detr_two_stage_r50_coco_50ep.py \\
        train.init_checkpoint=output/selftrain_in1k/checkpoints/last.pth
Schedule: 5 epochs x 40_036 steps (1_281_167 images in batches of 32) = 200_180 steps; a tenth of
the learning rate after 4 epochs = 160_144 steps.
"""

from .common.schedule import set_length
from .selftrain_o365 import data, dataloader, lr_multiplier, model, optimizer, train

data.unlabeled.source, data.unlabeled.split = "datasets/imagenet", "train"
data.store = "output/in1k_pseudo_labels"

train.output_dir = "output/selftrain_in1k"
set_length(train, lr_multiplier, epoch=1_281_167 // 32, epochs=5, drop=4)
train.checkpoint_period = 5_000
