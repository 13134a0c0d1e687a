"""Does AlignDet help on drawn scenes with 100 labelled images? Three kinds of detectors.

    tools/make_scenes.py datasets/scenes --num-classes 3 --clutter 0.5 \\
        --split train=1200 --split test=200
    tools/compare.py --config-file configs/compare_align_det_scenes.py \\
        --output output/compare_align_det_scenes --budget cpu --jobs 2 --num-gpus 0 \\
        data.train.source=datasets/scenes

The whole chain without labels on all 1200 images: a ResNet-18 by contrast of images and places,
Selective Search, filters, clusters (DETR family), AlignDet with the backbone frozen; then
fine-tuning with new last layers. Scratch has as many updates in all; its backbone is random.
Images have 96 pixels. FCOS is the dense detector, for it learns sooner: AP50 43.6 after 200
updates from scratch, RetinaNet's 5.8 (one seed).
"""

from .common.compare_align_det import boxes, comparison, given, stages_at, updates
from .common.compare_align_det import three_arms as arms
from .common.compare_align_det import three_controls as controls
from .common.compare_align_det import three_titles as titles
from .common.comparison import budgets_of, data

comparison.title = "AlignDet on scenes"
comparison.labels = [100]

updates.backbone = updates.pretrain = 100
updates.finetune = 150

stages = stages_at(96, search="128", filters={"relative": [0.08, 0.8], "aspect": 3, "nms": 0.5})

# Seconds of one core: an update with its share of evaluation, a run for boxes; AMD EPYC.
timing = dict(
    image_domain=0.45,
    align_det=0.36,
    align_det_fcos=0.4,
    align_det_faster_rcnn=0.42,
    deformable_detr=0.42,
    fcos=0.42,
    faster_rcnn=0.5,
    proposals=60.0,
    filtered=10.0,
    clusters=90.0,
)

budgets = budgets_of(
    small=dict(backbone=60, pretrain=60, finetune=80),
    gpu=dict(backbone=4000, pretrain=4000, finetune=2000),
)
