"""Fine-tuning of DETReg on 5% of COCO's labels, from pre-training on all of its images.

As `configs/detreg_finetune_coco_1pct_2000ep.py`.

Run: tools/lazyconfig_train_net.py --num-gpus 8 \\
    --config-file configs/detreg_finetune_coco_5pct_500ep.py
Schedule: 500 epochs x 246 steps (5_914 images in batches of 24) = 123_000 steps; the learning
rate stays.
Published: 24.8 +- 0.2 AP over several draws; ours draws other images. Not trained by us yet.
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

data.train.fraction = 0.05

train.output_dir = "output/detreg_finetune_coco_5pct_500ep"
set_length(train, lr_multiplier, epoch=5_914 // 24, epochs=500, eval_epochs=20)
