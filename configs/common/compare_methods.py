"""Scratch, UP-DETR, DETReg and self-training on DETR, Deformable DETR and H-Deformable DETR.

Is the papers' trend there: unsupervised pre-training gains less, the stronger the detector, while
self-training keeps its gain? Every arm has the same backbone, from image-domain pre-training on the
unlabelled images, and on one detector the same number of updates. DETR needs many more: at 64
pixels and a stride of 8, not 32, it had AP50 1.1 and 11.3 after 2200 on 100 labelled scenes (two
seeds), at 128 pixels, where an update takes three times as long, 0.5 after 540. So it gets some
eight times as many as the others; after 900 there was nothing to compare. The finest map of
deformable detectors has a stride of 4: two-stage ones choose queries from its places.

A recipe imports the sections, has `data` of its own, and makes `stages` by `stages_at(...)`.
"""

from predet.d2 import LazyCall as L
from predet.engine.comparison import Controls, PseudoLabels, Training

from .comparison import BF16, budgets_of, placed, sizes_at

comparison = dict(title="Pre-training methods", labels=[100], seeds=3, matters=1.0)
# Of every detector: before the labels (pre-training), on the labels (fine-tuning).
updates = dict(
    backbone=150,
    detr=dict(pretrain=1500, finetune=2000),
    deformable=dict(pretrain=150, finetune=300),
    h_deformable=dict(pretrain=100, finetune=220),
)

# Detector -> its training config; those of UP-DETR, DETReg and self-training.
DETECTORS = dict(
    detr=("detr", "updetr", "detreg_detr", "selftrain_detr"),
    deformable=(
        "deformable_detr_one_stage",
        "updetr_deformable",
        "detreg_one_stage",
        "selftrain_one_stage",
    ),
    h_deformable=(
        "h_deformable_detr",
        "updetr_h_deformable",
        "detreg_h_deformable",
        "selftrain_h_deformable",
    ),
)
METHODS = ("updetr", "detreg", "self_training")
NAMES = dict(detr="DETR", deformable="Deformable DETR", h_deformable="H-Deformable DETR")
TITLES = dict(updetr="UP-DETR", detreg="DETReg", self_training="self-training")


def stages_at(side: int, most_boxes: int) -> dict:
    """All stages.

    Args:
        side: pixels of an image's shorter side.
        most_boxes: of a labelled image; H-Deformable DETR has six further queries for each.
    """
    sizes, crops, test = sizes_at(side)
    of_detector = dict(
        # UP-DETR's transformer is pre-norm, and so is that of whatever it is compared with.
        detr={"backbone.out_stages": [3], "transformer.pre_norm": True},
        deformable={"backbone.out_stages": [2, 3, 4, 5]},
        h_deformable={
            "backbone.out_stages": [2, 3, 4, 5],
            "queries.num_one_to_many": 6 * most_boxes,
        },
    )
    made = dict(
        backbone=L(Training)(
            config="configs/tiny/image_domain.py",
            on="unlabeled",
            updates="${updates.backbone}",
            set=BF16,
        )
    )
    for detector, configs in DETECTORS.items():
        own, inner = placed({"backbone.weights": "stage:backbone", **of_detector[detector]})
        made[f"{detector}_finetune"] = L(Training)(
            config=f"configs/tiny/{configs[0]}.py",
            on="train",
            updates=f"${{updates.{detector}.finetune}}",
            set={**own, **BF16, **sizes, **crops, **test},
        )
        made[f"{detector}_boxes"] = L(PseudoLabels)(teacher=f"{detector}_finetune")
        of_method = dict(
            updetr={"data.patches.size": 32},
            detreg=crops,
            self_training={
                **crops,
                "data.store": f"stage:{detector}_boxes",
                "data.selection.top_k": 10,
            },
        )
        for method, config in zip(METHODS, configs[1:], strict=True):
            made[f"{detector}_{method}"] = L(Training)(
                config=f"configs/tiny/{config}.py",
                on="unlabeled",
                updates=f"${{updates.{detector}.pretrain}}",
                set={**inner, **BF16, **sizes, **of_method[method]},
            )
    return made


arms = {f"{detector}_scratch": [f"{detector}_finetune"] for detector in DETECTORS} | {
    f"{detector}_{method}": [f"{detector}_{method}", f"{detector}_finetune"]
    for detector in DETECTORS
    for method in METHODS
}
titles = {f"{detector}_scratch": f"{NAMES[detector]}, scratch" for detector in DETECTORS} | {
    f"{detector}_{method}": f"{NAMES[detector]}, {TITLES[method]}"
    for detector in DETECTORS
    for method in METHODS
}
controls = L(Controls)(
    scratch="detr_finetune",
    scratch_of={
        f"{detector}_{method}": f"{detector}_finetune"
        for detector in DETECTORS
        for method in METHODS
    },
)

# Seconds of one core at 64 pixels: an update with its share of evaluation, a run for boxes.
timing = dict(
    image_domain=0.28,
    detr=0.11,
    updetr=0.09,
    detreg_detr=0.26,
    selftrain_detr=0.12,
    deformable_detr_one_stage=0.33,
    updetr_deformable=0.22,
    detreg_one_stage=0.36,
    selftrain_one_stage=0.3,
    h_deformable_detr=0.39,
    updetr_h_deformable=0.27,
    detreg_h_deformable=0.46,
    selftrain_h_deformable=0.37,
    pseudo_labels=40.0,
)


def _lengths(backbone: int, detr: tuple[int, int], deformable: tuple[int, int]) -> dict:
    """Updates of pre-training and fine-tuning, of both deformable detectors the same."""
    chosen = dict(detr=detr, deformable=deformable, h_deformable=deformable)
    return {"backbone": backbone} | {
        f"{detector}.{part}": number
        for detector, numbers in chosen.items()
        for part, number in zip(("pretrain", "finetune"), numbers, strict=True)
    }


budgets = budgets_of(
    small=_lengths(40, (40, 60), (20, 30)),
    gpu=_lengths(4000, (8000, 8000), (4000, 2000)),
)
