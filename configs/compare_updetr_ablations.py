"""What matters in UP-DETR: its own ablations on the tiny DETR and scenes, 100 labelled images.

    tools/make_scenes.py datasets/scenes --num-classes 3 --clutter 0.5 \\
        --split train=1200 --split test=200
    tools/compare.py --config-file configs/compare_updetr_ablations.py --budget cpu --jobs 2 \\
        --num-gpus 0 --output output/compare_updetr_ablations data.train.source=datasets/scenes

Frozen backbone with and without reconstruction and neither (Table 5), one patch and several (Table
6), shuffling (appendix A.3), the attention mask, what is masked (the paper masks patches, its code
queries), and matching within groups. The backbone is that of image-domain pre-training. For a GPU:
at the lengths of the CPU budget DETR has not begun to learn (`configs/common/compare_methods.py`).
"""

from predet.d2 import LazyCall as L
from predet.engine.comparison import Controls, Training

from .common.comparison import BF16, budgets_of, data

comparison = dict(title="Ablations of UP-DETR", labels=[100], seeds=3, matters=1.0)
updates = dict(backbone=150, pretrain=240, finetune=360)

VARIANTS = dict(
    updetr={},
    no_reconstruction={"model.reconstruction_weight": 0.0},
    trained={"model.freeze_backbone": False},
    trained_no_reconstruction={
        "model.freeze_backbone": False,
        "model.reconstruction_weight": 0.0,
    },
    one_patch={"data.boxes.num": 1},
    ten_patches={"data.boxes.num": 10},
    shuffled_queries={"model.shuffle": True},
    groups_together={"model.groups_apart": False},
    masked_patches={"model.mask": "patches"},
    unmasked={"model.mask_probability": 0.0},
    matched_in_groups={"model.matching": "group"},
)
stages = dict(
    backbone=L(Training)(
        config="configs/tiny/image_domain.py", on="unlabeled", updates="${updates.backbone}"
    ),
    finetune=L(Training)(
        config="configs/tiny/detr.py",
        on="train",
        updates="${updates.finetune}",
        set={
            **BF16,
            "model.backbone.weights": "stage:backbone",
            "model.transformer.pre_norm": True,
        },
    ),
) | {
    name: L(Training)(
        config="configs/tiny/updetr.py",
        on="unlabeled",
        updates="${updates.pretrain}",
        set={**BF16, "model.detector.backbone.weights": "stage:backbone", **keys},
    )
    for name, keys in VARIANTS.items()
}
arms = dict(scratch=["finetune"]) | {name: [name, "finetune"] for name in VARIANTS}
titles = dict(
    updetr="UP-DETR: frozen, with reconstruction, 5 patches",
    no_reconstruction="frozen, without reconstruction",
    trained="backbone trained, with reconstruction",
    trained_no_reconstruction="backbone trained, without reconstruction",
    one_patch="1 patch",
    ten_patches="10 patches",
    shuffled_queries="queries shuffled",
    groups_together="without attention mask",
    masked_patches="whole patches masked",
    unmasked="nothing masked",
    matched_in_groups="matched within groups",
)
controls = L(Controls)()

# Seconds of one core: an update with its share of evaluation.
timing = dict(image_domain=0.5, detr=0.5, updetr=0.35)

budgets = budgets_of(
    small=dict(backbone=40, pretrain=40, finetune=60),
    gpu=dict(backbone=4000, pretrain=8000, finetune=8000),
)
