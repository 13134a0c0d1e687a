"""Self-training against its controls: where the boxes come from, what their classes are.

A recipe imports all sections, sets `configs`, `updates`, `comparison` and `timing`, makes `stages`
by `stages_with(...)`, and has `data` and `budgets` of its own (`comparison.py`).
"""

from predet.d2 import LazyCall as L
from predet.engine.comparison import Controls, PseudoLabels, Training

from .comparison import placed

comparison = dict(title="Self-training", labels=[20], seeds=3, matters=1.0)
configs = dict(
    detector="configs/small/deformable_detr.py",
    pretrain="configs/small/selftrain.py",
    backbone="configs/small/image_domain.py",
)
updates = dict(teacher=200, pretrain=200, finetune=200, backbone=200)
confident = dict(score=0.5)  # of the arm with a threshold instead of a number of boxes

OBJECTNESS = "predet.pretext.semantic_targets.Objectness"


def stages_with(
    training: dict | None = None,
    evaluation: dict | None = None,
    detector: dict | None = None,
) -> dict:
    """All stages.

    Args:
        training: keys of every detector training.
        evaluation: of those on labels.
        detector: of the detector, without the name of its place.
    """
    training = training or {}
    own, inner = placed(detector)
    labelled = {**own, **training, **(evaluation or {})}

    def supervised(length: str, **keys: object):
        return L(Training)(
            config="${configs.detector}",
            on="train",
            updates=f"${{updates.{length}}}",
            set={**labelled, **keys},
        )

    def pretraining(keys: dict, boxes: str = "boxes"):
        return L(Training)(
            config="${configs.pretrain}",
            on="unlabeled",
            updates="${updates.pretrain}",
            set={**inner, **training, "data.store": f"stage:{boxes}", **keys},
        )

    best_30 = {"data.selection.top_k": 30}
    sure = {"data.selection.top_k": 100, "data.selection.score_threshold": "${confident.score}"}
    own_backbone = {"model.backbone.weights": "stage:backbone"}
    # Trained on in every stage, as the random backbone is: they differ only in where they start.
    own_backbone_in_student = {
        "model.detector.backbone.weights": "stage:backbone",
        "model.freeze_backbone": False,
    }
    return dict(
        teacher=supervised("teacher"),
        boxes=L(PseudoLabels)(teacher="teacher"),
        best_30=pretraining(best_30),
        best_60=pretraining({"data.selection.top_k": 60}),
        best_100=pretraining({"data.selection.top_k": 100}),
        confident=pretraining(sure),
        objectness=pretraining({**best_30, "model.semantic_target._target_": OBJECTNESS}),
        finetune=supervised("finetune"),
        # A class head that has learned only objectness starts anew.
        finetune_new_head=supervised("finetune", **{"train.reinit": ["class_head"]}),
        backbone=L(Training)(
            config="${configs.backbone}", on="unlabeled", updates="${updates.backbone}"
        ),
        backbone_teacher=supervised("teacher", **own_backbone),
        backbone_boxes=L(PseudoLabels)(teacher="backbone_teacher"),
        backbone_best_30=pretraining({**best_30, **own_backbone_in_student}, "backbone_boxes"),
    )


arms = dict(
    scratch=["finetune"],
    best_30=["best_30", "finetune"],
    best_60=["best_60", "finetune"],
    best_100=["best_100", "finetune"],
    confident=["confident", "finetune"],
    objectness=["objectness", "finetune_new_head"],
    backbone=["backbone_teacher"],
    backbone_best_30=["backbone_best_30", "finetune"],
)
titles = dict(
    best_30="self-training, best 30 boxes",
    best_60="self-training, best 60 boxes",
    best_100="self-training, best 100 boxes",
    confident="self-training, boxes that score ${confident.score} and more",
    objectness="best 30 boxes, objectness only",
    backbone="own backbone, no self-training",
    backbone_best_30="own backbone, best 30 boxes",
)
controls = L(Controls)(scratch="finetune", teacher="teacher", shuffled=["best_30"])
