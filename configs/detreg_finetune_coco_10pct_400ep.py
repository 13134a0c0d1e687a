"""Fine-tuning of DETReg on 10% of COCO's labels, from pre-training on all of its images.

As `configs/detreg_finetune_coco_1pct_2000ep.py`.

Run: tools/lazyconfig_train_net.py --num-gpus 8 \\
    --config-file configs/detreg_finetune_coco_10pct_400ep.py
Schedule: 400 epochs x 492 steps (11_829 images in batches of 24) = 196_800 steps; the learning
rate stays.
Published: 29.1 +- 0.2 AP over several draws; ours draws other images. Not trained by us yet.
"""

from .common.schedule import set_length
from .detreg_finetune_coco_1pct_2000ep import (
    data,
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

data.train.fraction = 0.1

train.output_dir = "output/detreg_finetune_coco_10pct_400ep"
set_length(train, lr_multiplier, epoch=11_829 // 24, epochs=400, eval_epochs=20)
