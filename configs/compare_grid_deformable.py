"""Where boxes come from and what supervises their classes, on the tiny Deformable DETR and scenes.

    tools/make_scenes.py datasets/scenes --num-classes 3 --clutter 0.5 \\
        --split train=1200 --split test=200
    tools/compare.py --config-file configs/compare_grid_deformable.py --budget cpu --jobs 2 \\
        --num-gpus 0 --output output/compare_grid_deformable data.train.source=datasets/scenes

`configs/common/compare_grid.py` says what the arms are. Two-stage.
"""

from .common.compare_grid import comparison, confident, controls, grid, lengths
from .common.comparison import data

comparison.title = "Box sources and class targets, Deformable DETR"
updates = dict(backbone=150, pretrain=120, finetune=220)

stages, arms, titles = grid(
    "deformable_detr",
    "pretrain",
    "detreg",
    "selftrain",
    keys={"queries.num_queries": 120},
)
budgets = lengths(4000, 2000)

# Seconds of one core: an update with its share of evaluation, a run for boxes.
timing = dict(
    image_domain=0.5,
    deformable_detr=0.55,
    pretrain=0.45,
    detreg=0.45,
    selftrain=0.45,
    pseudo_labels=50.0,
)
