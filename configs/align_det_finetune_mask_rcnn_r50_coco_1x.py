"""Fine-tuning of an AlignDet-pre-trained Mask R-CNN R50 on COCO, the usual 12 epochs.

As published: 1.5 times the usual learning rate, half the weight decay, synchronised batch norms in
the backbone; the layers that predict classes and coordinates start afresh. The published recipes
also put new norms into the pyramid; ours goes on with the pyramid as it was pre-trained.

Run: tools/lazyconfig_train_net.py --num-gpus 8 \\
        --config-file configs/align_det_finetune_mask_rcnn_r50_coco_1x.py
"""

from .mask_rcnn_r50_coco_1x import data, dataloader, lr_multiplier, model, optimizer, train

model.head_convolutions = 4
model.backbone.norm = "sync_bn"

optimizer.lr, optimizer.weight_decay = 0.03, 5e-5

train.init_checkpoint = "output/align_det_mask_rcnn_r50_coco_1x/checkpoints/last.pth"
train.reinit = ["last-layers"]
train.output_dir = "output/align_det_finetune_mask_rcnn_r50_coco_1x"
