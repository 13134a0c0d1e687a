"""AlignDet's recipes carry the constants of the published code; the numbers here are its own."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from predet.d2 import instantiate
from predet.engine.config import load_config
from predet.pretext.semantic_targets import KeepClasses, Objectness
from predet.projects.align_det.momentum import momentum_at

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
COCO = 118_287  # images
ADAMW, SGD = (torch.optim.AdamW, 1e-4), (torch.optim.SGD, 1e-4)
OFFSETS = {"sampling_offsets": 0.1, "reference_points": 0.1}
# Batch, epochs, epochs of the drops, learning rate, optimiser with weight decay, factors of parts,
# proposals, predictions compared, width of the projector, weight of the contrast, classes.
PRETRAINING = {
    "align_det_detr_r50_coco": (64, 50, [40], 2e-4, ADAMW, {}, 50, None, 256, 1, KeepClasses),
    "align_det_deformable_detr_r50_coco": (
        32, 12, [8, 11], 2e-4, ADAMW, OFFSETS, 150, None, 256, 2, Objectness,
    ),
    "align_det_retinanet_r50_coco_1x": (
        16, 12, [8, 11], 0.01, SGD, {}, 50, 2 * 2048, 256, 1, Objectness,
    ),
    "align_det_fcos_r50_coco_1x": (
        16, 12, [8, 11], 0.01, SGD, {}, None, 2048, 256, 1, Objectness,
    ),
    "align_det_mask_rcnn_r50_coco_1x": (
        16, 12, [8, 11], 0.02, SGD, {}, None, 2 * 4096, 1024, 1, Objectness,
    ),
}  # fmt: skip


def load(name: str) -> DictConfig:
    return load_config(CONFIGS / f"{name}.py", [])


def test_every_recipe_on_coco_is_listed() -> None:
    found = {p.stem for p in CONFIGS.glob("align_det_*coco*.py") if "finetune" not in p.stem}
    assert found == set(PRETRAINING)


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining(name: str) -> None:
    batch, epochs, drops, lr, kind, factors, top, regions, width, weight, classes = PRETRAINING[
        name
    ]
    cfg = load(name)
    epoch = COCO // batch
    assert cfg.dataloader.train.total_batch_size == batch
    assert cfg.train.max_iter == cfg.lr_multiplier.max_iter == epochs * epoch
    assert cfg.lr_multiplier.drop_steps == [drop * epoch for drop in drops]
    assert (cfg.optimizer._target_, cfg.optimizer.weight_decay) == kind
    assert (cfg.optimizer.lr, cfg.optimizer.params.get("lr_factors", {})) == (lr, factors)
    assert cfg.data.selection.top_k == top
    assert cfg.dataloader.train.dataset.top_k == top
    model = cfg.model
    assert (model.temperature, model.base_momentum, model.embedding_dim) == (0.5, 0.996, 256)
    assert (model.hidden_dim, model.max_regions) == (width, regions)
    assert model.weights == {"loss_contrast": weight, "detection": 1}
    assert model.semantic_target._target_ is classes
    assert (model.freeze_backbone, model.gather_negatives) == ("auto", False)
    assert model.detector.backbone.weights == "torchvision"
    if kind == SGD:
        schedule = instantiate(cfg.lr_multiplier)
        assert schedule(0) == pytest.approx(0.001)
        assert schedule(500 / cfg.train.max_iter) == pytest.approx(1)
        assert cfg.optimizer.momentum == 0.9
    else:
        assert cfg.train.clip_grad_norm == 0.1


@pytest.mark.parametrize("path", sorted((CONFIGS / "tiny").glob("align_det*.py")), ids=str)
def test_the_copy_of_a_short_run_forgets_what_it_began_with(path: Path) -> None:
    """Also over a fraction of the recipe's updates, as comparisons have them."""
    base = load_config(path, []).model.base_momentum
    kept = math.prod(momentum_at(step, 150, base=base) for step in range(150))
    assert kept < 0.15


@pytest.mark.parametrize("name", PRETRAINING)
def test_views(name: str) -> None:
    mapper = load(name).dataloader.train.mapper
    resize, flip = mapper.augmentation.steps
    assert (resize.short_sides, resize.max_size) == ([640, 672, 704, 736, 768, 800], 1333)
    assert flip.probability == 0.5
    (change,) = mapper.photometric
    assert len(instantiate(change).changes) == 9


def test_two_stage_samples_are_those_of_the_paper() -> None:
    detector = load("align_det_mask_rcnn_r50_coco_1x").model.detector
    assert detector.head_convolutions == 4
    assert (detector.rpn_samples, detector.rpn_positive_fraction) == (4096, 1)


@pytest.mark.parametrize(
    ("detector", "lr"),
    [("retinanet", 1.5e-2), ("fcos", 1.5e-2), ("mask_rcnn", 3e-2), ("faster_rcnn", 3e-2)],
)
def test_fine_tuning_has_more_rate_and_less_decay(detector: str, lr: float) -> None:
    cfg, usual = load(f"align_det_finetune_{detector}_r50_coco_1x"), load(f"{detector}_r50_coco_1x")
    assert cfg.optimizer.lr == lr == pytest.approx(1.5 * usual.optimizer.lr)
    assert cfg.optimizer.weight_decay == 5e-5 == pytest.approx(0.5 * usual.optimizer.weight_decay)
    assert cfg.train.max_iter == usual.train.max_iter
    assert cfg.train.reinit[0] == "last-layers"
    assert cfg.model.backbone.norm == "sync_bn"


FINE_TUNING = sorted(path.stem for path in CONFIGS.glob("align_det_finetune_*.py"))


@pytest.mark.parametrize("name", FINE_TUNING)
def test_fine_tuning_starts_where_pretraining_ends(name: str) -> None:
    cfg = load(name)
    folder, *rest = cfg.train.init_checkpoint.removeprefix("output/").split("/")
    assert rest == ["checkpoints", "last.pth"]
    pretraining = load(folder)
    assert pretraining.train.output_dir == f"output/{folder}"
    ours, theirs = cfg.model, pretraining.model.detector
    if "faster_rcnn" not in name:
        assert ours._target_ is theirs._target_
    for key in set(ours) & set(theirs) - {"backbone", "_target_"}:
        if not key.startswith("rpn_"):  # how many are sampled, not what there is
            assert ours[key] == theirs[key], key
    if "detr" in name:  # all layers, as UP-DETR
        assert (ours.backbone.norm, ours.backbone.freeze_at) == ("sync_bn", 0)
