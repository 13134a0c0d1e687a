"""Does self-training help on drawn scenes with 100 labelled images?

    tools/make_scenes.py datasets/scenes --num-classes 3 --clutter 0.5 \\
        --split train=1200 --split test=200
    tools/compare.py --config-file configs/compare_scenes.py --output output/compare_scenes \\
        --budget cpu --jobs 2 --num-gpus 0 data.train.source=datasets/scenes

The labelled scenes are drawn anew for each seed; all 1200 are unlabelled images. Two-stage
Deformable DETR with a ResNet-18 and GroupNorm from random weights, 128 pixels.
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

comparison.title = "Self-training on scenes"
comparison.labels = [100]
data.train.source = "datasets/scenes"
# A third faster on processors that multiply in bfloat16, and on GPUs.
stages = stages_with(training={"train.precision": "bf16"})
configs.detector = "configs/tiny/deformable_detr.py"
configs.pretrain = "configs/tiny/selftrain.py"
configs.backbone = "configs/tiny/image_domain.py"

updates.teacher = updates.finetune = 280
updates.pretrain = updates.backbone = 150

# Seconds of one core: an update with its share of evaluation, a run for boxes; on a busy AMD EPYC.
timing = dict(deformable_detr=0.8, selftrain=0.75, image_domain=0.4, pseudo_labels=60.0)

budgets = dict(
    small={
        "comparison.seeds": 2,
        "updates.teacher": 80,
        "updates.pretrain": 80,
        "updates.finetune": 80,
        "updates.backbone": 80,
    },
    cpu={"comparison.seeds": 3},
    gpu={
        "comparison.seeds": 5,
        "updates.teacher": 2000,
        "updates.pretrain": 4000,
        "updates.finetune": 2000,
        "updates.backbone": 4000,
    },
)
