"""Does self-training help on blood cell photographs with 20 labelled images?

    tools/compare.py --config-file configs/compare_bccd.py --output output/compare_bccd \\
        --budget cpu --jobs 2 --num-gpus 0 data.train.source=BCCD

BCCD in PASCAL VOC layout: 20 images of `train` are drawn anew for each seed, all of `trainval` are
unlabelled images, AP is that of `test`. Two-stage Deformable DETR with a ResNet-18 and GroupNorm
from random weights, 128 pixels. `--plan` says what would be run and how long it takes.
"""

from .common.compare_self_training import (
    arms,
    comparison,
    confident,
    configs,
    controls,
    stages_with,
    titles,
    updates,
)
from .common.comparison import BF16, budgets_of, data, sizes_at

comparison.title = "Self-training on blood cells"
data.train.source = "datasets/bccd"
data.unlabeled.split = "trainval"

_sizes, _crops, _test = sizes_at(128)
stages = stages_with(training={**BF16, **_sizes, **_crops}, evaluation=_test)

# Seconds of one core: an update with its share of evaluation, a run for boxes; AMD EPYC.
timing = dict(deformable_detr=0.45, selftrain=0.4, image_domain=0.6, pseudo_labels=40.0)

budgets = budgets_of(
    small=dict(teacher=60, pretrain=60, finetune=60, backbone=60),
    gpu=dict(teacher=1500, pretrain=3000, finetune=1500, backbone=3000),
)
