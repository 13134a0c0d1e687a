"""Fine-tuning of UP-DETR on PASCAL VOC, 300 epochs, as on COCO.

`configs/updetr_finetune_coco_300ep.py` says what is kept and what starts anew.

Run: tools/lazyconfig_train_net.py --num-gpus 8 \\
    --config-file configs/updetr_finetune_voc_300ep.py
Schedule: 300 epochs x 1_034 steps (16_551 images in batches of 16) = 310_200 steps; a tenth of
the learning rate after 200 epochs = 206_800 steps.
Published: 57.2 AP, 80.1 AP50 (Table 1). Not trained by us yet.
"""

from .common.schedule import set_length
from .common.voc import data, dataloader
from .updetr_finetune_coco_300ep import lr_multiplier, model, optimizer, train

train.output_dir = "output/updetr_finetune_voc_300ep"
set_length(train, lr_multiplier, epoch=16_551 // 16, epochs=300, drop=200, eval_epochs=10)
