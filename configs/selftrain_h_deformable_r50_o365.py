"""Simple self-training with a Swin-L teacher and a ResNet-50 student, both H-Deformable DETR.

The student learns from the store of the teacher of `configs/selftrain_h_deformable_swin_l_o365.py`,
where the command is that makes it.

Run: tools/lazyconfig_train_net.py --num-gpus 8 \\
    --config-file configs/selftrain_h_deformable_r50_o365.py
    tools/lazyconfig_train_net.py --num-gpus 8 train.reinit=auto \\
        --config-file configs/h_deformable_detr_r50_coco_12ep.py \\
        train.init_checkpoint=output/selftrain_h_deformable_r50_o365/checkpoints/last.pth
Schedule: 5 epochs x 108_893 steps (1_742_289 images in batches of 16) = 544_465 steps; a tenth of
the learning rate after 4 epochs = 435_572 steps.

Ours: the paper (arXiv 2308.01300) does not tell which teacher a student has. Not trained by us yet.
"""

from .h_deformable_detr_r50_coco_12ep import model, optimizer
from .selftrain_h_deformable_swin_l_o365 import data, dataloader, lr_multiplier, pretrain, train

model = pretrain(model)

optimizer.params.lr_factors = {"sampling_offsets": 0.1}  # the backbone is frozen

train.output_dir = "output/selftrain_h_deformable_r50_o365"
