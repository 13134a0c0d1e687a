"""AlignDet of torchvision's Mask R-CNN R50 on a folder of one's own unlabelled images.

As `configs/align_det_faster_rcnn_folder.py`; the mask branch is left as it was.

Run: tools/lazyconfig_train_net.py --num-gpus 1 data.unlabeled.source=IMAGES data.store=STORE \\
    --config-file configs/align_det_mask_rcnn_folder.py
Then configs/mask_rcnn_folder.py with train.reinit=[last-layers] and
    train.init_checkpoint=output/folder/align_det_mask_rcnn/checkpoints/last.pth
"""

from .align_det_faster_rcnn_folder import data, dataloader, lr_multiplier, optimizer, train
from .common.align_det import pretrain_pyramid
from .mask_rcnn_folder import model

model = pretrain_pyramid(model, hidden_dim=1024, max_regions=4096)

train.output_dir = "output/folder/align_det_mask_rcnn"
