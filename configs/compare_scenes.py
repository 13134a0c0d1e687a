"""Does self-training help on drawn scenes with 100 labelled images?

    tools/make_scenes.py datasets/scenes --num-classes 3 --clutter 0.5 \\
        --split train=1200 --split test=200
    tools/compare.py --config-file configs/compare_scenes.py --output output/compare_scenes \\
        --budget cpu --jobs 2 --num-gpus 0 data.train.source=datasets/scenes

The labelled scenes are drawn anew for each seed; all 1200 are unlabelled images. Two-stage
Deformable DETR with 120 queries, a ResNet-18 and GroupNorm from random weights, 128 pixels.
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
from .common.comparison import BF16, budgets_of, data

comparison.title = "Self-training on scenes"
comparison.labels = [100]
# A teacher gives at most one box a query: more queries than the 100 boxes of the largest arm.
stages = stages_with(training=BF16, detector={"queries.num_queries": 120})
configs.detector = "configs/tiny/deformable_detr.py"
configs.pretrain = "configs/tiny/selftrain.py"
configs.backbone = "configs/tiny/image_domain.py"

# Of 120000 boxes of a teacher that has trained for so long none scores 0.5, 2.6 an image score 0.3.
confident.score = 0.3
updates.teacher = updates.finetune = 280
updates.pretrain = updates.backbone = 150

# Seconds of one core: an update with its share of evaluation, a run for boxes; on a busy AMD EPYC.
timing = dict(deformable_detr=0.8, selftrain=0.75, image_domain=0.4, pseudo_labels=60.0)

budgets = budgets_of(
    small=dict(teacher=80, pretrain=80, finetune=80, backbone=80),
    gpu=dict(teacher=2000, pretrain=4000, finetune=2000, backbone=4000),
)
