"""A comparison for the stand-in tools, with the library's real configs as training configs."""
# ruff: noqa: C408

from predet.d2 import LazyCall as L
from predet.engine.comparison import Controls, PseudoLabels, Training

comparison = dict(title="Stand-ins", labels=[10], seeds=3, matters=1.0)
data = dict(
    train=dict(source="scenes", split="train", image_root=None),
    unlabeled=dict(source="${data.train.source}", split="train", image_root=None),
    test=dict(source="${data.train.source}", split="test", image_root=None),
)
updates = dict(pretrain=100, finetune=100)
stages = dict(
    teacher=L(Training)(
        config="configs/tiny/deformable_detr.py", on="train", updates="${updates.finetune}"
    ),
    boxes=L(PseudoLabels)(teacher="teacher", options={"keep": 50}),
    pretrain=L(Training)(
        config="configs/tiny/selftrain.py",
        on="unlabeled",
        updates="${updates.pretrain}",
        set={"data.store": "stage:boxes", "data.selection.top_k": 20},
    ),
    finetune=L(Training)(
        config="configs/tiny/deformable_detr.py", on="train", updates="${updates.finetune}"
    ),
)
arms = dict(scratch=["finetune"], method=["pretrain", "finetune"])
titles = dict(method="the method")
controls = L(Controls)(shuffled=["method"])
budgets = dict(small={"comparison.seeds": 2, "updates.pretrain": 40}, cpu={"comparison.seeds": 3})
