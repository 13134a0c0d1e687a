"""Fine-tuning of UP-DETR on COCO, 150 epochs; see `configs/updetr_finetune_coco_300ep.py`.

Run: tools/lazyconfig_train_net.py --num-gpus 8 \\
    --config-file configs/updetr_finetune_coco_150ep.py
Schedule: 150 epochs x 7_392 steps (118_287 images in batches of 16) = 1_108_800 steps; a tenth of
the learning rate after 100 epochs = 739_200 steps.
Published: 40.5 AP (Table 2). Not trained by us yet.
"""

from .common.schedule import set_length
from .updetr_finetune_coco_300ep import data, dataloader, lr_multiplier, model, optimizer, train

train.output_dir = "output/updetr_finetune_coco_150ep"
set_length(train, lr_multiplier, epoch=118_287 // 16, epochs=150, drop=100, eval_epochs=5)
