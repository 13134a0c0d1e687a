"""Does AlignDet help on blood cell photographs with 20 labelled images? Three kinds of detectors.

    tools/compare.py --config-file configs/compare_align_det_bccd.py \\
        --output output/compare_align_det_bccd --budget cpu --jobs 2 --num-gpus 0 \\
        data.train.source=BCCD

BCCD in PASCAL VOC layout: 20 images of `train` are drawn anew for each seed, all of `trainval` are
unlabelled images, AP is that of `test`. The chain is that of configs/compare_align_det_scenes.py,
at the same size.
"""

from .common.compare_align_det import boxes, comparison, given, stages_at, updates
from .common.compare_align_det import three_arms as arms
from .common.compare_align_det import three_controls as controls
from .common.compare_align_det import three_titles as titles
from .common.comparison import budgets_of, data

comparison.title = "AlignDet on blood cells"
data.train.source = "datasets/bccd"
data.unlabeled.split = "trainval"

updates.backbone = updates.pretrain = 100
updates.finetune = 150

stages = stages_at(96, search="320", filters={"relative": [0.05, 0.6], "aspect": 3, "nms": 0.5})

# Seconds of one core: an update with its share of evaluation, a run for boxes; AMD EPYC.
timing = dict(
    image_domain=0.5,
    align_det=0.4,
    align_det_fcos=0.42,
    align_det_faster_rcnn=0.45,
    deformable_detr=0.42,
    fcos=0.45,
    faster_rcnn=0.55,
    proposals=120.0,
    filtered=10.0,
    clusters=40.0,
)

budgets = budgets_of(
    small=dict(backbone=60, pretrain=60, finetune=60),
    gpu=dict(backbone=3000, pretrain=3000, finetune=1500),
)
