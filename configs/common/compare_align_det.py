"""AlignDet against its controls: the chain backbone, proposals, box domain, fine-tuning.

A detector of the DETR family, a dense and a two-stage one, each with its own scratch; or, with
`ablations`, one of them in many ways. A recipe imports the sections and sets `updates`,
`comparison` and `timing`; `data` and `budgets` are its own. All arms of a seed share one backbone,
trained on the images, and one set of proposals.
"""

from predet.d2 import LazyCall as L
from predet.engine.comparison import Clusters, Controls, Filtered, Proposals, Training

from .comparison import BF16, TRAIN, sizes_at

comparison = dict(title="AlignDet", labels=[20], seeds=3, matters=1.0)
updates = dict(backbone=200, pretrain=200, finetune=200)
boxes = dict(num=10, clusters=32)  # proposals of an image; clusters of all of them
# Or a file with weights of a ResNet-18, and its normalisation: "bn" of published ones.
given = dict(backbone="stage:backbone", norm="gn")

BACKBONE = "model.detector.backbone.weights"


def stages_at(side: int, *, search: str, filters: dict) -> dict:
    """The stages of all three detectors and of the ablations.

    Args:
        side: pixels of an image's shorter side.
        search: size of the images on which proposals are searched.
        filters: options of the filters of proposals.
    """
    sizes, crops, test = sizes_at(side)
    views = {f"{TRAIN}.steps.0.{key.rpartition('.')[2]}": value for key, value in sizes.items()}

    def supervised(detector: str, **keys: object):
        return L(Training)(
            config=f"configs/tiny/{detector}.py",
            on="train",
            updates="${updates.finetune}",
            set={"model.backbone.norm": "${given.norm}", **BF16, **sizes, **crops, **test, **keys},
        )

    def tuned(detector: str, *fresh: str):
        return supervised(detector, **{"train.reinit": list(fresh) or ["last-layers"]})

    def aligned(config: str, boxes: str = "filtered", on: str = "unlabeled", **keys: object):
        return L(Training)(
            config=f"configs/tiny/{config}.py",
            on=on,
            updates="${updates.pretrain}",
            set={
                "data.store": f"stage:{boxes}",
                "data.selection.top_k": "${boxes.num}",
                BACKBONE: "${given.backbone}",
                "model.detector.backbone.norm": "${given.norm}",
                **BF16,
                **views,
                **keys,
            },
        )

    def one_side(contrast: float, detection: float):
        weights = {"loss_contrast": contrast, "detection": detection}
        return aligned("align_det", "clusters", **{"model.weights": weights})

    def image_domain(config: str):
        return L(Training)(
            config=f"configs/tiny/{config}.py",
            on="unlabeled",
            updates="${updates.backbone}",
            set={"model.backbone.norm": "${given.norm}", **BF16},
        )

    def proposals_on(images: str):
        options = {"mode": "fast", "resize": search, "workers": 1}
        return L(Proposals)(on=images, options=options)

    def clusters_by(encoder: str, boxes: str = "filtered", on: str = "unlabeled"):
        return L(Clusters)(
            boxes=boxes,
            backbone=encoder,
            on=on,
            options={"clusters": "${boxes.clusters}", "level": -2, "short_side": 256},
        )

    neck = ["all-but-backbone", "all-but-input_proj", "all-but-transformer.encoder"]
    random = {BACKBONE: None}
    own_backbone = {"model.backbone.weights": "${given.backbone}"}
    return dict(
        backbone=image_domain("image_domain"),
        swav=image_domain("swav"),
        proposals=proposals_on("unlabeled"),
        single_proposals=proposals_on("single"),
        filtered=L(Filtered)(boxes="proposals", options=filters),
        single_filtered=L(Filtered)(boxes="single_proposals", options=filters),
        clusters=clusters_by("backbone"),
        single_clusters=clusters_by("backbone", "single_filtered", on="single"),
        swav_clusters=clusters_by("swav"),
        align=aligned("align_det", "clusters"),
        align_fcos=aligned("align_det_fcos"),
        align_faster_rcnn=aligned("align_det_faster_rcnn"),
        tune=tuned("deformable_detr"),
        tune_fcos=tuned("fcos"),
        tune_faster_rcnn=tuned("faster_rcnn"),
        finetune=supervised("deformable_detr"),
        finetune_fcos=supervised("fcos"),
        finetune_faster_rcnn=supervised("faster_rcnn"),
        backbone_only=supervised("deformable_detr", **own_backbone),
        contrast=one_side(1.0, 0.0),
        regression=one_side(0.0, 1.0),
        object_only=aligned("align_det"),
        single=aligned("align_det", "single_clusters", on="single"),
        trained_backbone=aligned("align_det", "clusters", **{"model.freeze_backbone": False}),
        swav_backbone=aligned("align_det", "swav_clusters", **{BACKBONE: "stage:swav"}),
        random_backbone=aligned("align_det", **random),
        random_frozen=aligned("align_det", **random, **{"model.freeze_backbone": True}),
        tune_neck=tuned("deformable_detr", *neck),
        tune_boxes=tuned("deformable_detr", "class_head"),
    )


three_arms = dict(
    scratch=["finetune"],
    align=["align", "tune"],
    scratch_fcos=["finetune_fcos"],
    align_fcos=["align_fcos", "tune_fcos"],
    scratch_faster_rcnn=["finetune_faster_rcnn"],
    align_faster_rcnn=["align_faster_rcnn", "tune_faster_rcnn"],
)
three_titles = dict(
    scratch="Deformable DETR, scratch",
    align="Deformable DETR, AlignDet",
    scratch_fcos="FCOS, scratch",
    align_fcos="FCOS, AlignDet",
    scratch_faster_rcnn="Faster R-CNN, scratch",
    align_faster_rcnn="Faster R-CNN, AlignDet",
)
three_controls = L(Controls)(
    scratch="finetune",
    scratch_of=dict(align_fcos="finetune_fcos", align_faster_rcnn="finetune_faster_rcnn"),
    shuffled=["align"],
)

ablation_arms = dict(
    scratch=["finetune"],
    align=["align", "tune"],
    contrast=["contrast", "tune"],
    regression=["regression", "tune"],
    object_only=["object_only", "tune"],
    single=["single", "tune"],
    neck_only=["align", "tune_neck"],
    with_box_layer=["align", "tune_boxes"],
    backbone_only=["backbone_only"],
    trained_backbone=["trained_backbone", "tune"],
    swav_backbone=["swav_backbone", "tune"],
    random_backbone=["random_backbone", "tune"],
    random_frozen=["random_frozen", "tune"],
)
ablation_titles = dict(
    align="AlignDet",
    contrast="contrast alone",
    regression="clusters and boxes alone",
    object_only="objectness instead of clusters",
    single="images of one object each",
    neck_only="only the neck is transferred",
    with_box_layer="the last box layer is transferred, too",
    backbone_only="own backbone, no box domain",
    trained_backbone="own backbone, trained on",
    swav_backbone="own backbone by SwAV",
    random_backbone="random backbone, trained",
    random_frozen="random backbone, frozen",
)
ablation_controls = L(Controls)(scratch="finetune")
