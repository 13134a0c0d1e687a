"""Scratch, UP-DETR, DETReg and self-training on DETR, Deformable DETR and H-Deformable DETR.

Is the papers' trend there: unsupervised pre-training gains less, the stronger the detector, while
self-training keeps its gain? Every arm has the same backbone, from image-domain pre-training on the
unlabelled images, and on one detector the same number of updates. DETR takes more and cheaper ones.

A recipe imports all sections, has `data` of its own, and sets `comparison` and `timing`; with other
keys for its detectors it takes `stages_with(...)` instead of `stages`.
"""

from predet.d2 import LazyCall as L
from predet.engine.comparison import Controls, PseudoLabels, Training

from .comparison import budgets_of, placed

comparison = dict(title="Pre-training methods", labels=[100], seeds=3, matters=1.0)
# Of every detector: before the labels (pre-training), on the labels (fine-tuning).
updates = dict(
    backbone=150,
    detr=dict(pretrain=240, finetune=360),
    deformable=dict(pretrain=120, finetune=200),
    h_deformable=dict(pretrain=120, finetune=200),
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


def stages_with(
    training: dict | None = None,
    evaluation: dict | None = None,
    pretraining: dict | None = None,
) -> dict:
    """All stages.

    Args:
        training: keys of every detector training.
        evaluation: of those on labels.
        pretraining: of DETReg and self-training, which crop images as training on labels does.
    """
    made = dict(
        backbone=L(Training)(
            config="configs/tiny/image_domain.py", on="unlabeled", updates="${updates.backbone}"
        )
    )
    for detector, configs in DETECTORS.items():
        # UP-DETR's transformer is pre-norm, and so is that of whatever it is compared with.
        pre_norm = {"transformer.pre_norm": True} if detector == "detr" else {}
        own, inner = placed({"backbone.weights": "stage:backbone", **pre_norm})
        made[f"{detector}_finetune"] = L(Training)(
            config=f"configs/tiny/{configs[0]}.py",
            on="train",
            updates=f"${{updates.{detector}.finetune}}",
            set={**own, **(training or {}), **(evaluation or {})},
        )
        made[f"{detector}_boxes"] = L(PseudoLabels)(teacher=f"{detector}_finetune")
        of_method = dict(
            updetr={},
            detreg=pretraining or {},
            self_training={
                **(pretraining or {}),
                "data.store": f"stage:{detector}_boxes",
                "data.selection.top_k": 10,
            },
        )
        for method, config in zip(METHODS, configs[1:], strict=True):
            made[f"{detector}_{method}"] = L(Training)(
                config=f"configs/tiny/{config}.py",
                on="unlabeled",
                updates=f"${{updates.{detector}.pretrain}}",
                set={**inner, **(training or {}), **of_method[method]},
            )
    return made


stages = stages_with()
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

# Seconds of one core at 128 pixels: an update with its share of evaluation, a run for boxes.
timing = dict(
    image_domain=0.5,
    detr=0.5,
    updetr=0.3,
    detreg_detr=0.42,
    selftrain_detr=0.35,
    deformable_detr_one_stage=0.57,
    updetr_deformable=0.4,
    detreg_one_stage=0.54,
    selftrain_one_stage=0.45,
    h_deformable_detr=0.72,
    updetr_h_deformable=0.45,
    detreg_h_deformable=0.65,
    selftrain_h_deformable=0.6,
    pseudo_labels=50.0,
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
