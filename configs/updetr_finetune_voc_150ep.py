"""Fine-tuning of UP-DETR on PASCAL VOC, 150 epochs, as on COCO.

`configs/updetr_finetune_coco_300ep.py` says what is kept and what starts anew.

Run: tools/lazyconfig_train_net.py --num-gpus 8 \\
    --config-file configs/updetr_finetune_voc_150ep.py
Schedule: 150 epochs x 1_034 steps (16_551 images in batches of 16) = 155_100 steps; a tenth of
the learning rate after 100 epochs = 103_400 steps.
Published: 56.1 AP, 79.7 AP50 (Table 1). Not trained by us yet.
"""

from .common.schedule import set_length
from .common.voc import data, dataloader
from .updetr_finetune_coco_300ep import lr_multiplier, model, optimizer, train

train.output_dir = "output/updetr_finetune_voc_150ep"
set_length(train, lr_multiplier, epoch=16_551 // 16, epochs=150, drop=100, eval_epochs=10)
