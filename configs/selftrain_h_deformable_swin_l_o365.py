"""Simple self-training of the strongest detector: H-Deformable DETR Swin-L on Objects365 images.

Teacher and student are the same detector; the paper (arXiv 2308.01300) reports 59.3 AP on COCO
val2017 after fine-tuning, 1.4 above no pre-training.

    tools/pseudo_label.py --config-file configs/h_deformable_detr_swin_l_900q_coco_36ep.py \\
        --weights TEACHER --images datasets/objects365/train \\
        --output output/o365_pseudo_labels_swin_l --num-gpus 8
Run: tools/lazyconfig_train_net.py --num-gpus 8 \\
    --config-file configs/selftrain_h_deformable_swin_l_o365.py
    tools/lazyconfig_train_net.py --num-gpus 8 train.reinit=auto \\
        --config-file configs/h_deformable_detr_swin_l_900q_coco_36ep.py \\
        train.init_checkpoint=output/selftrain_h_deformable_swin_l_o365/checkpoints/last.pth
Schedule: 5 epochs x 108_893 steps (1_742_289 images in batches of 16) = 544_465 steps; a tenth of
the learning rate after 4 epochs = 435_572 steps.

What the paper does not tell is decided as in `configs/selftrain_o365.py`; which of the published
variants it starts from is read off its AP. Learning rate, batch and weight decay are those of
fine-tuning. Not trained by us yet.
"""

from .common.schedule import set_length
from .common.self_training import data, dataloader, pretrain
from .h_deformable_detr_swin_l_900q_coco_36ep import lr_multiplier, model, optimizer, train

model = pretrain(model)

data.unlabeled.source = "datasets/objects365/train"
data.store = "output/o365_pseudo_labels_swin_l"

optimizer.params.lr_factors = {"sampling_offsets": 0.1}  # the backbone is frozen

train.output_dir = "output/selftrain_h_deformable_swin_l_o365"
set_length(train, lr_multiplier, epoch=1_742_289 // 16, epochs=5, drop=4)
train.checkpoint_period = 5_000
