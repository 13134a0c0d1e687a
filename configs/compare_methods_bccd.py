"""UP-DETR, DETReg and self-training on three detectors, on blood cells with 20 labelled images.

    tools/compare.py --config-file configs/compare_methods_bccd.py --budget cpu --jobs 2 \\
        --num-gpus 0 --output output/compare_methods_bccd data.train.source=BCCD

BCCD in PASCAL VOC layout: 20 images of `train` are drawn anew for each seed, all of `trainval` are
unlabelled images, AP is that of `test`. Tiny detectors with a ResNet-18 and GroupNorm, 64 pixels;
nothing is downloaded. `configs/compare_methods_scenes.py` says what is asked.
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

comparison.title = "Pre-training methods on blood cells"
comparison.labels = [20]
data.train.source = "datasets/bccd"
data.unlabeled.split = "trainval"

stages = stages_at(64, most_boxes=30)
