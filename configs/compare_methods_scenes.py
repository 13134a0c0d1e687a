"""UP-DETR, DETReg and self-training on three detectors, on scenes with 100 labelled images.

    tools/make_scenes.py datasets/scenes --num-classes 3 --clutter 0.5 \\
        --split train=1200 --split test=200
    tools/compare.py --config-file configs/compare_methods_scenes.py --budget cpu --jobs 2 \\
        --num-gpus 0 --output output/compare_methods_scenes data.train.source=datasets/scenes

Labelled scenes are drawn anew for each seed, all 1200 are unlabelled images. Tiny detectors with a
ResNet-18 and GroupNorm, 64 pixels; nothing is downloaded. Do gains of unsupervised pre-training
shrink on stronger detectors, and those of self-training stay (arXiv 2308.01300)?
"""

from .common.compare_methods import (
    arms,
    budgets,
    comparison,
    controls,
    stages_at,
    timing,
    titles,
    updates,
)
from .common.comparison import data

comparison.title = "Pre-training methods on scenes"
stages = stages_at(64, most_boxes=10)
