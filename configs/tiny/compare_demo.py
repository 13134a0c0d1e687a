"""The comparison of `make demo`: self-training against scratch and teacher, two seeds.

    tools/make_scenes.py SCENES --num-classes 3 --clutter 0.5 --split train=600 --split test=100
    tools/compare.py --config-file configs/tiny/compare_demo.py --output output/demo --jobs 2 \\
        data.train.source=SCENES

100 labelled scenes are drawn for each seed, all 600 are unlabelled images. Small enough for a
quarter of an hour on two cores, so what it shows is how a comparison reads, not whether
self-training helps: two seeds of a short training can rarely tell.
"""

from predet.d2 import LazyCall as L
from predet.engine.comparison import Controls, PseudoLabels, Training

from ..common.comparison import data

comparison = dict(title="Demonstration: self-training on scenes", labels=[100], seeds=2)
updates = dict(teacher=140, pretrain=90, finetune=140)

stages = dict(
    teacher=L(Training)(
        config="configs/tiny/deformable_detr.py", on="train", updates="${updates.teacher}"
    ),
    boxes=L(PseudoLabels)(teacher="teacher"),
    pretrain=L(Training)(
        config="configs/tiny/selftrain.py",
        on="unlabeled",
        updates="${updates.pretrain}",
        set={"data.store": "stage:boxes", "data.selection.top_k": 10},
    ),
    finetune=L(Training)(
        config="configs/tiny/deformable_detr.py", on="train", updates="${updates.finetune}"
    ),
)
arms = dict(scratch=["finetune"], self_training=["pretrain", "finetune"])
titles = dict(self_training="self-training, best 10 boxes")
controls = L(Controls)()
timing = dict(deformable_detr=0.8, selftrain=0.75, pseudo_labels=40.0)
budgets = dict(small={"comparison.seeds": 1}, cpu={"comparison.seeds": 3})
