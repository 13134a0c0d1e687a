"""Where boxes come from and what supervises their classes: tiny H-Deformable DETR on scenes.

    tools/make_scenes.py datasets/scenes --num-classes 3 --clutter 0.5 \\
        --split train=1200 --split test=200
    tools/compare.py --config-file configs/compare_grid_h_deformable.py --budget cpu --jobs 2 \\
        --num-gpus 0 --output output/compare_grid_h_deformable data.train.source=datasets/scenes

`configs/common/compare_grid.py` says what the arms are. For 100 boxes there are 720 queries, which
are chosen from the places of a map of stride 4; so updates are slow, and the CPU budget has few.
"""

from .common.compare_grid import comparison, confident, controls, grid, lengths
from .common.comparison import data

comparison.title = "Box sources and class targets, H-Deformable DETR"
updates = dict(backbone=150, pretrain=50, finetune=90)

stages, arms, titles = grid(
    "h_deformable_detr",
    "pretrain_h_deformable",
    "detreg_h_deformable",
    "selftrain_h_deformable",
    keys={
        "queries.num_queries": 120,
        "queries.num_one_to_many": 600,  # six for each of 100 boxes
        "backbone.out_stages": [2, 3, 4, 5],
    },
)
budgets = lengths(4000, 2000)

# Seconds of one core: an update with its share of evaluation, a run for boxes.
timing = dict(
    image_domain=0.5,
    h_deformable_detr=1.8,
    pretrain_h_deformable=1.6,
    detreg_h_deformable=1.6,
    selftrain_h_deformable=1.6,
    pseudo_labels=50.0,
)
