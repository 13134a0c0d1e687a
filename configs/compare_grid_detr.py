"""Where boxes come from and what supervises their classes, on the tiny DETR and scenes.

    tools/make_scenes.py datasets/scenes --num-classes 3 --clutter 0.5 \\
        --split train=1200 --split test=200
    tools/compare.py --config-file configs/compare_grid_detr.py --budget cpu --jobs 2 \\
        --num-gpus 0 --output output/compare_grid_detr data.train.source=datasets/scenes

`configs/common/compare_grid.py` says what the arms are.
For a GPU: at the lengths of the CPU budget DETR has not begun to learn (`compare_methods.py`).
"""

from .common.compare_grid import comparison, confident, controls, grid, lengths
from .common.comparison import data

comparison.title = "Box sources and class targets, DETR"
updates = dict(backbone=150, pretrain=240, finetune=360)

stages, arms, titles = grid(
    "detr",
    "pretrain_detr",
    "detreg_detr",
    "selftrain_detr",
    keys={"num_queries": 120},
)
budgets = lengths(8000, 8000)

# Seconds of one core: an update with its share of evaluation, a run for boxes.
timing = dict(
    image_domain=0.5,
    detr=0.5,
    pretrain_detr=0.4,
    detreg_detr=0.4,
    selftrain_detr=0.4,
    pseudo_labels=50.0,
)
