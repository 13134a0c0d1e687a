"""AlignDet: RetinaNet of torchvision with a ResNet-50 on the proposals of COCO's training images.

As published, 2048 anchors an image and the first 50 proposals; 4096 are those of the two images
of a GPU.

Run: tools/lazyconfig_train_net.py --num-gpus 8 data.store=STORE \\
        --config-file configs/align_det_retinanet_r50_coco_1x.py
Then: configs/align_det_finetune_retinanet_r50_coco_1x.py
Length: 12 epochs of 118_287 // 16 = 7_392 steps, a tenth of the learning rate after 8 and again
after 11; SGD with 0.01, decay 1e-4, warm-up over 500 steps.
"""

from .common.align_det import data, dataloader, pretrain_pyramid
from .common.models.torchvision_detectors import retinanet as model
from .common.torchvision_1x import lr_multiplier, optimizer, train

model = pretrain_pyramid(model, hidden_dim=256, max_regions=4096)

data.unlabeled.source, data.unlabeled.split = "datasets/coco", "train2017"
data.store = "output/coco_proposals"
data.selection.top_k = 50
dataloader.train.total_batch_size = 16

optimizer.lr = 0.01
train.output_dir = "output/align_det_retinanet_r50_coco_1x"
