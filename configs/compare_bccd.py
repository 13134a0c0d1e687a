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
    configs,
    controls,
    data,
    stages_with,
    titles,
    updates,
)

comparison.title = "Self-training on blood cells"
data.train.source = "datasets/bccd"
data.unlabeled.split = "trainval"

_train = "dataloader.train.mapper.augmentation"
_test = "dataloader.test.mapper.augmentation"
stages = stages_with(
    training={
        "train.precision": "bf16",  # a third faster on processors that multiply in it, and on GPUs
        f"{_train}.short_sides": [112, 120, 128, 136, 144],
        f"{_train}.max_size": 224,
        f"{_train}.crop_short_sides": [128, 144, 160],
        f"{_train}.crop_size": [80, 128],
    },
    evaluation={f"{_test}.short_sides": [128], f"{_test}.max_size": 224},
)

# Seconds of one core: an update with its share of evaluation, a run for boxes; AMD EPYC.
timing = dict(deformable_detr=0.45, selftrain=0.4, image_domain=0.6, pseudo_labels=40.0)

budgets = dict(
    small={
        "comparison.seeds": 2,
        "updates.teacher": 60,
        "updates.pretrain": 60,
        "updates.finetune": 60,
        "updates.backbone": 60,
    },
    cpu={"comparison.seeds": 3},
    gpu={
        "comparison.seeds": 5,
        "updates.teacher": 1500,
        "updates.pretrain": 3000,
        "updates.finetune": 1500,
        "updates.backbone": 3000,
    },
)
