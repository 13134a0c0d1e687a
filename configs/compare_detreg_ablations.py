"""What matters in DETReg: its ablations on the tiny Deformable DETR, 100 labelled scenes.

    tools/make_scenes.py datasets/scenes --num-classes 3 --clutter 0.5 \\
        --split train=1200 --split test=200
    tools/compare.py --config-file configs/compare_detreg_ablations.py --budget cpu --jobs 2 \\
        --num-gpus 0 --output output/compare_detreg_ablations data.train.source=datasets/scenes

The weight of the embedding (0, 1, 2) with a frozen backbone or a trained one, regions of other
images (Table 5); which of the regions are taken (Table 6); random boxes and annotated ones, which
bound what boxes can do; and an encoder of random weights, which says whether it is the features
that help. Backbone and encoder are those of image-domain pre-training on the same images.
"""

from predet.d2 import LazyCall as L
from predet.engine.comparison import Controls, Proposals, Training

from .common.comparison import BF16, budgets_of, choice, data

comparison = dict(title="Ablations of DETReg", labels=[100], seeds=3, matters=1.0)
updates = dict(backbone=150, pretrain=120, finetune=220)

_dataset, _boxes = "dataloader.train.dataset", "dataloader.train.mapper.boxes"
_store = {"data.store": "stage:regions"}
_none, _double = {"model.embedding_weight": 0.0}, {"model.embedding_weight": 2.0}
_trained = {"model.freeze_backbone": False}
VARIANTS = dict(
    detreg=_store,
    no_embedding={**_store, **_none},
    double_embedding={**_store, **_double},
    trained={**_store, **_trained},
    trained_no_embedding={**_store, **_trained, **_none},
    trained_double_embedding={**_store, **_trained, **_double},
    other_regions_no_embedding={
        **_store,
        **_trained,
        **_none,
        _boxes: choice("boxes.other_regions"),
    },
    random_k={**_store, f"{_boxes}.pick": choice("pick.random_k")},
    importance={**_store, f"{_boxes}.pick": choice("pick.importance")},
    random_patches={_boxes: choice("boxes.random_patches")},
    annotated={_dataset: choice("dataset.annotated"), _boxes: choice("boxes.of_dataset")},
    random_encoder={
        **_store,
        "model.patch_encoder.backbone.weights": None,
        "model.patch_encoder.allow_random": True,
    },
)
stages = dict(
    backbone=L(Training)(
        config="configs/tiny/image_domain.py", on="unlabeled", updates="${updates.backbone}"
    ),
    regions=L(Proposals)(options={"recipe": "detreg"}),
    finetune=L(Training)(
        config="configs/tiny/deformable_detr_one_stage.py",
        on="train",
        updates="${updates.finetune}",
        set={**BF16, "model.backbone.weights": "stage:backbone"},
    ),
) | {
    name: L(Training)(
        config="configs/tiny/detreg_one_stage.py",
        on="unlabeled",
        updates="${updates.pretrain}",
        set={**BF16, "model.detector.backbone.weights": "stage:backbone", **keys},
    )
    for name, keys in VARIANTS.items()
}
arms = dict(scratch=["finetune"]) | {name: [name, "finetune"] for name in VARIANTS}
titles = dict(
    detreg="DETReg: frozen, embedding x 1, first 10 regions",
    no_embedding="frozen, no embedding",
    double_embedding="frozen, embedding x 2",
    trained="backbone trained, embedding x 1",
    trained_no_embedding="backbone trained, no embedding",
    trained_double_embedding="backbone trained, embedding x 2",
    other_regions_no_embedding="regions of other images, backbone trained, no embedding",
    random_k="any 10 regions",
    importance="10 regions by importance",
    random_patches="random boxes",
    annotated="annotated boxes without classes",
    random_encoder="encoder of random weights",
)
controls = L(Controls)()

# Seconds of one core: an update with its share of evaluation, the search in all images.
timing = dict(
    image_domain=0.5,
    deformable_detr_one_stage=0.45,
    detreg_one_stage=0.45,
    proposals=60.0,
)

budgets = budgets_of(
    small=dict(backbone=40, pretrain=20, finetune=30),
    gpu=dict(backbone=4000, pretrain=4000, finetune=2000),
)
