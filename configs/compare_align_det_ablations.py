"""What in AlignDet helps, on drawn scenes with 100 labelled images: one part changed at a time.

    tools/make_scenes.py datasets/scenes --num-classes 3 --clutter 0.5 \\
        --split train=1200 --split test=200
    tools/make_scenes.py datasets/scenes_single --num-classes 3 --clutter 0.5 --max-objects 1 \\
        --split train=1200
    tools/compare.py --config-file configs/compare_align_det_ablations.py \\
        --output output/compare_align_det_ablations --budget cpu --jobs 2 --num-gpus 0 \\
        data.train.source=datasets/scenes

Two-stage Deformable DETR: contrast or regression alone; objectness instead of clusters; images of
one object each (object-centric) in place of those of several; the neck or the last box layer
transferred; the backbone of one's own images frozen, trained on or by SwAV, or a random one. Given
weights in its place: given.backbone=FILE given.norm=bn.
"""

from .common.compare_align_det import ablation_arms as arms
from .common.compare_align_det import ablation_controls as controls
from .common.compare_align_det import ablation_titles as titles
from .common.compare_align_det import boxes, comparison, given, stages_at, updates
from .common.comparison import budgets_of, data

comparison.title = "AlignDet: ablations on scenes"
comparison.labels = [100]
data.single = dict(source="${data.train.source}_single", split="train", image_root=None)

updates.backbone = updates.pretrain = 120
updates.finetune = 150

stages = stages_at(96, search="128", filters={"relative": [0.08, 0.8], "aspect": 3, "nms": 0.5})

# Seconds of one core: an update with its share of evaluation, a run for boxes; AMD EPYC.
timing = dict(
    image_domain=0.45,
    swav=0.7,
    align_det=0.36,
    deformable_detr=0.42,
    proposals=60.0,
    filtered=10.0,
    clusters=90.0,
)

budgets = budgets_of(
    small=dict(backbone=60, pretrain=60, finetune=60),
    gpu=dict(backbone=4000, pretrain=4000, finetune=2000),
)
