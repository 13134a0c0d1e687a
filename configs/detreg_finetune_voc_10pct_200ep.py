"""Fine-tuning of DETReg on a tenth of PASCAL VOC's labels, on two GPUs.

Run: tools/lazyconfig_train_net.py --num-gpus 2 \\
    --config-file configs/detreg_finetune_voc_10pct_200ep.py
Schedule: 200 epochs x 206 steps (1_655 images in batches of 8) = 41_200 steps; a tenth of the
learning rate after 150 epochs = 30_900 steps.
Which images are drawn is our own. The only figure is of the paper's first version, whose results on
parts of COCO's labels are withdrawn; we do not compare with it. Not trained by us yet.
"""

from .common.schedule import set_length
from .detreg_finetune_voc_100ep import data, dataloader, lr_multiplier, model, optimizer, train

data.train.fraction = 0.1
dataloader.train.total_batch_size = 8

train.output_dir = "output/detreg_finetune_voc_10pct_200ep"
set_length(train, lr_multiplier, epoch=1_655 // 8, epochs=200, drop=150, eval_epochs=20)
