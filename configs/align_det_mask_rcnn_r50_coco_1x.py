"""AlignDet: Mask R-CNN of torchvision with a ResNet-50 on the proposals of COCO's training images.

As published, all positive proposals, up to 4096 an image (8192 are those of the two images of a
GPU), all proposals of the store, a head of four convolutions, and no mask head. Faster R-CNN is
fine-tuned from it, too.

Run: tools/lazyconfig_train_net.py --num-gpus 8 data.store=STORE \\
        --config-file configs/align_det_mask_rcnn_r50_coco_1x.py
Then: configs/align_det_finetune_mask_rcnn_r50_coco_1x.py,
    configs/align_det_finetune_faster_rcnn_r50_coco_1x.py
Length: 12 epochs of 118_287 // 16 = 7_392 steps, a tenth of the learning rate after 8 and again
after 11; SGD with 0.02, decay 1e-4, warm-up over 500 steps.
"""

from .common.align_det import data, dataloader, pretrain_pyramid
from .common.models.torchvision_detectors import mask_rcnn as model
from .common.torchvision_1x import lr_multiplier, optimizer, train

model.head_convolutions = 4
model.rpn_samples, model.rpn_positive_fraction = 4096, 1.0
model = pretrain_pyramid(model, hidden_dim=1024, max_regions=8192)

data.unlabeled.source, data.unlabeled.split = "datasets/coco", "train2017"
data.store = "output/coco_proposals"
data.selection.top_k = None
dataloader.train.total_batch_size = 16

train.output_dir = "output/align_det_mask_rcnn_r50_coco_1x"
