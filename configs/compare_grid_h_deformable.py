"""Where boxes come from and what supervises their classes: tiny H-Deformable DETR on scenes.

    tools/make_scenes.py datasets/scenes --num-classes 3 --clutter 0.5 \\
        --split train=1200 --split test=200
    tools/compare.py --config-file configs/compare_grid_h_deformable.py --budget cpu --jobs 2 \\
        --num-gpus 0 --output output/compare_grid_h_deformable data.train.source=datasets/scenes

`configs/common/compare_grid.py` says what the arms are. Its 60 one-to-many queries, six for each
box, bound the number of boxes.
"""

from .common.compare_grid import comparison, controls_of, grid, lengths
from .common.comparison import data

comparison.title = "Box sources and class targets, H-Deformable DETR"
updates = dict(backbone=150, pretrain=120, finetune=220)

_counts = (10, 5)
stages, arms, titles = grid(
    "h_deformable_detr",
    "pretrain_h_deformable",
    "detreg_h_deformable",
    "selftrain_h_deformable",
    counts=_counts,
)
controls = controls_of(_counts)
budgets = lengths(4000, 2000)

# Seconds of one core: an update with its share of evaluation, a run for boxes.
timing = dict(
    image_domain=0.5,
    h_deformable_detr=0.72,
    pretrain_h_deformable=0.6,
    detreg_h_deformable=0.6,
    selftrain_h_deformable=0.6,
    pseudo_labels=50.0,
)
