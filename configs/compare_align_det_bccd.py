"""Does AlignDet help on blood cell photographs with 20 labelled images? Three kinds of detectors.

    tools/compare.py --config-file configs/compare_align_det_bccd.py \\
        --output output/compare_align_det_bccd --budget cpu --jobs 2 --num-gpus 0 \\
        data.train.source=BCCD

BCCD in PASCAL VOC layout: 20 images of `train` are drawn anew for each seed, all of `trainval` are
unlabelled images, AP is that of `test`. The chain is that of configs/compare_align_det_scenes.py,
at 128 pixels.
"""

from .common.compare_align_det import boxes, comparison, given, stages_with, updates
from .common.compare_align_det import three_arms as arms
from .common.compare_align_det import three_controls as controls
from .common.compare_align_det import three_titles as titles
from .common.comparison import BF16, TRAIN, budgets_of, data, short_sides_at, sizes_at

comparison.title = "AlignDet on blood cells"
data.train.source = "datasets/bccd"
data.unlabeled.split = "trainval"

updates.backbone = 120
updates.pretrain = updates.finetune = 150

_sizes, _crops, _test = sizes_at(128)
stages = stages_with(
    training={**BF16, **_sizes, **_crops},
    evaluation=_test,
    views={
        **BF16,
        f"{TRAIN}.steps.0.short_sides": short_sides_at(128),
        f"{TRAIN}.steps.0.max_size": 224,
    },
    backbone=BF16,
    search={"mode": "fast", "resize": "320", "workers": 1},
    filters={"relative": [0.05, 0.6], "aspect": 3, "nms": 0.5},
    clustering={"level": -2, "short_side": 256},
)

# Seconds of one core: an update with its share of evaluation, a run for boxes; AMD EPYC.
timing = dict(
    image_domain=0.6,
    align_det=0.55,
    align_det_retinanet=0.45,
    align_det_faster_rcnn=0.5,
    deformable_detr=0.8,
    retinanet=0.75,
    faster_rcnn=1.3,
    proposals=120.0,
    filtered=10.0,
    clusters=40.0,
)

budgets = budgets_of(
    small=dict(backbone=60, pretrain=60, finetune=60),
    gpu=dict(backbone=3000, pretrain=3000, finetune=1500),
)
