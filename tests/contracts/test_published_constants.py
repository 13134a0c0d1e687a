"""The recipes carry the constants of the authors' code; the numbers here are theirs, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import DictConfig

from predet.d2 import instantiate
from predet.data.augmentation import DETRAugmentation
from predet.engine.config import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
COCO_IMAGES = 118_287

DETR_MODEL = {
    "transformer.hidden_dim": 256,
    "transformer.num_heads": 8,
    "transformer.num_encoder_layers": 6,
    "transformer.num_decoder_layers": 6,
    "transformer.ffn_dim": 2048,
    "transformer.dropout": 0.1,
    "num_queries": 100,
    "backbone.norm": "frozen_bn",
    "backbone.freeze_at": 2,
    "criterion.matcher.classification": "softmax",
    "criterion.matcher.class_cost": 1,
    "criterion.matcher.bbox_cost": 5,
    "criterion.matcher.giou_cost": 2,
    "criterion.weights": {"loss_class": 1, "loss_bbox": 5, "loss_giou": 2},
    "criterion.no_object_weight": 0.1,
}
DEFORMABLE_MODEL = {
    **{key: DETR_MODEL[key] for key in DETR_MODEL if key.startswith(("transformer", "backbone"))},
    "transformer.ffn_dim": 1024,
    "transformer.num_levels": 4,
    "queries.num_queries": 300,
    "backbone.out_stages": [3, 4, 5],
    "criterion.matcher.classification": "focal",
    "criterion.matcher.class_cost": 2,
    "criterion.matcher.bbox_cost": 5,
    "criterion.matcher.giou_cost": 2,
    "criterion.weights": {"loss_class": 2, "loss_bbox": 5, "loss_giou": 2},
    "top_k": 100,
}
MODELS = {
    "detr_r50_coco_300ep": DETR_MODEL,
    "deformable_detr_r50_coco_50ep": {**DEFORMABLE_MODEL, "with_box_refine": False},
    "deformable_detr_refined_r50_coco_50ep": {**DEFORMABLE_MODEL, "with_box_refine": True},
    "deformable_detr_two_stage_r50_coco_50ep": {**DEFORMABLE_MODEL, "with_box_refine": True},
}


def value_at(cfg: DictConfig, dotted: str) -> object:
    for part in dotted.split("."):
        assert part in cfg, f"{dotted}: nothing is called {part}"
        cfg = cfg[part]
    return cfg


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    model = load_config(CONFIGS / f"{name}.py", []).model
    for key, expected in MODELS[name].items():
        assert value_at(model, key) == expected, key


# Batch, epochs, epoch of the drop, learning rate, factors of single parts.
SCHEDULES = {
    "detr_r50_coco_300ep": (16, 300, 200, 1e-4, {"backbone": 0.1}),
    "deformable_detr_r50_coco_50ep": (
        32, 50, 40, 2e-4, {"backbone": 0.1, "sampling_offsets": 0.1, "reference_points": 0.1},
    ),
    "deformable_detr_two_stage_r50_coco_50ep": (
        32, 50, 40, 2e-4, {"backbone": 0.1, "sampling_offsets": 0.1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str) -> None:
    batch, epochs, drop, lr, factors = SCHEDULES[name]
    cfg = load_config(CONFIGS / f"{name}.py", [])
    steps = COCO_IMAGES // batch  # the authors drop the batch that is not full
    assert cfg.dataloader.train.total_batch_size == batch
    assert abs(cfg.train.max_iter - epochs * steps) <= epochs
    schedule = instantiate(cfg.lr_multiplier)
    at = [schedule(epoch / epochs) for epoch in (0, drop - 0.5, drop + 0.5, epochs - 0.5)]
    assert at == pytest.approx([1, 1, 0.1, 0.1])
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (lr, 1e-4)
    assert cfg.optimizer.params.lr_factors == factors
    assert "no_weight_decay" not in cfg.optimizer.params
    assert cfg.train.clip_grad_norm == 0.1
    resize = cfg.dataloader.test.mapper.augmentation
    assert (resize.short_sides, resize.max_size) == ([800], 1333)
    assert cfg.dataloader.train.mapper.augmentation._target_ is DETRAugmentation
