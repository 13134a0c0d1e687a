"""The grid of "Revisiting DETR Pre-training" on one detector: box source x class target.

Sources: Selective Search, EdgeBoxes, random patches, a teacher trained on the labels (several
numbers of boxes, and a threshold), the truth. An image has 30 boxes, but for the truth and what is
named otherwise. Targets: an object or not, the embedding of a frozen
encoder (DETReg; also a random one), the teacher's or the true class. The backbone is the same in
all arms, from image-domain pre-training. Other images to pre-train on, or other data altogether:

    tools/compare.py --config-file configs/compare_grid_deformable.py --output OUT \\
        data.unlabeled.source=IMAGES data.unlabeled.split=null
    tools/compare.py --config-file configs/compare_grid_deformable.py --output OUT \\
        data.train.source=BCCD data.unlabeled.split=trainval comparison.labels=[20]

A recipe imports `comparison`, `confident`, `controls` and `data`, and makes the rest with
`grid(...)`.
"""

from predet.d2 import LazyCall as L
from predet.engine.comparison import Controls, PseudoLabels, Training

from .comparison import BF16, budgets_of, choice, placed

COUNTS = (30, 60, 100)  # boxes of the teacher, the paper's; other sources have the first

comparison = dict(title="Box sources and class targets", labels=[100], seeds=3, matters=1.0)
# Of the arm with a threshold. Briefly trained teachers are not sure of anything: of 120000 boxes
# after 280 updates none scored 0.5, 2.6 an image scored 0.3.
confident = dict(score=0.3)
controls = L(Controls)(shuffled=[f"teacher_{COUNTS[0]}"])  # its boxes on other images too

BOXES, DATASET = "dataloader.train.mapper.boxes", "dataloader.train.dataset"
TARGET = "model.semantic_target._target_"
KEEP_CLASSES = "predet.pretext.semantic_targets.KeepClasses"
OBJECTNESS = "predet.pretext.semantic_targets.Objectness"
TRUTH = {DATASET: choice("dataset.annotated"), BOXES: choice("boxes.of_dataset")}
FIRST = {"data.boxes.num": COUNTS[0]}


def grid(
    detector: str,
    pretrain: str,
    detreg: str,
    selftrain: str,
    *,
    keys: dict,
) -> tuple[dict, dict, dict]:
    """Stages, arms and titles.

    Args:
        detector: training config of the detector, a name in configs/tiny, as the others are.
        pretrain: that of pre-training on boxes of any source.
        detreg: that of DETReg.
        selftrain: that of self-training.
        keys: of the detector, without the name of its place: in all trainings. A teacher gives at
            most one box a query.
    """
    own, inner = placed({"backbone.weights": "stage:backbone", **keys})

    def pretraining(config: str, **more: object):
        return L(Training)(
            config=f"configs/tiny/{config}.py",
            on="unlabeled",
            updates="${updates.pretrain}",
            set={**BF16, **inner, **more},
        )

    def taught(count: int, **more: object):
        chosen = {"data.store": "stage:boxes", "data.selection.top_k": count}
        return pretraining(selftrain, **chosen, **more)

    variants = dict(
        search_objects=(pretraining(pretrain, **FIRST), "Selective Search, objects"),
        search_embedding=(pretraining(detreg, **FIRST), "Selective Search, embedding (DETReg)"),
        search_random_embedding=(
            pretraining(
                detreg,
                **FIRST,
                **{
                    "model.patch_encoder.backbone.weights": None,
                    "model.patch_encoder.allow_random": True,
                },
            ),
            "Selective Search, embedding of a random encoder",
        ),
        edge_objects=(
            pretraining(pretrain, **FIRST, **{BOXES: choice("boxes.edge_boxes")}),
            "EdgeBoxes, objects",
        ),
        random_objects=(
            pretraining(pretrain, **FIRST, **{BOXES: choice("boxes.random_patches")}),
            "random boxes, objects",
        ),
        truth_objects=(pretraining(pretrain, **TRUTH), "true boxes, objects"),
        truth_classes=(
            pretraining(pretrain, **TRUTH, **{TARGET: KEEP_CLASSES}),
            "true boxes and classes",
        ),
        teacher_objects=(
            taught(COUNTS[0], **{TARGET: OBJECTNESS}),
            f"teacher's best {COUNTS[0]}, objects",
        ),
        teacher_confident=(
            taught(COUNTS[-1], **{"data.selection.score_threshold": "${confident.score}"}),
            "teacher's boxes that score ${confident.score} and more, classes",
        ),
    ) | {
        f"teacher_{count}": (taught(count), f"teacher's best {count}, classes") for count in COUNTS
    }
    stages = dict(
        backbone=L(Training)(
            config="configs/tiny/image_domain.py", on="unlabeled", updates="${updates.backbone}"
        ),
        finetune=L(Training)(
            config=f"configs/tiny/{detector}.py",
            on="train",
            updates="${updates.finetune}",
            set={**BF16, **own},
        ),
        boxes=L(PseudoLabels)(teacher="finetune"),
    ) | {name: stage for name, (stage, _) in variants.items()}
    arms = dict(scratch=["finetune"]) | {name: [name, "finetune"] for name in variants}
    return stages, arms, {name: title for name, (_, title) in variants.items()}


def lengths(pretrain: int, finetune: int) -> dict:
    """The budgets, with so many updates on a GPU."""
    return budgets_of(
        small=dict(backbone=40, pretrain=20, finetune=30),
        gpu=dict(backbone=4000, pretrain=pretrain, finetune=finetune),
    )
