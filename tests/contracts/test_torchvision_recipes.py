"""The recipes of torchvision's detectors and of SwAV carry the published numbers, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import open_dict

from predet.d2 import instantiate
from predet.engine.config import load_config
from predet.projects.image_domain import SwAV

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
EPOCH = 7_392  # 118_287 images of COCO in batches of 16
RATES = {"retinanet": 0.01, "fcos": 0.01, "faster_rcnn": 0.02, "mask_rcnn": 0.02}


@pytest.mark.parametrize("name", RATES)
def test_the_usual_schedule_on_coco(name: str) -> None:
    cfg = load_config(CONFIGS / f"{name}_r50_coco_1x.py", [])
    assert cfg.dataloader.train.total_batch_size == 16
    assert cfg.train.max_iter == 12 * EPOCH == 88_704
    schedule = instantiate(cfg.lr_multiplier)
    for step, factor in (
        (0, 0.001), (250, 0.5005), (500, 1), (8 * EPOCH - 1, 1), (8 * EPOCH, 0.1),
        (11 * EPOCH - 1, 0.1), (11 * EPOCH, 0.01), (12 * EPOCH - 1, 0.01),
    ):  # fmt: skip
        assert schedule(step / cfg.train.max_iter) == pytest.approx(factor), step
    assert cfg.optimizer._target_ is torch.optim.SGD
    found = (cfg.optimizer.lr, cfg.optimizer.momentum, cfg.optimizer.weight_decay)
    assert found == (RATES[name], 0.9, 1e-4)
    assert cfg.train.clip_grad_norm is None
    resize, flip = cfg.dataloader.train.mapper.augmentation.steps
    assert (resize.short_sides, resize.max_size, flip.probability) == ([800], 1333, 0.5)
    assert cfg.train.output_dir == f"output/{name}_r50_coco_1x"


@pytest.mark.parametrize("name", RATES)
def test_the_models_are_torchvisions(name: str) -> None:
    model = load_config(CONFIGS / f"{name}_r50_coco_1x.py", []).model
    backbone = model.backbone
    assert (backbone.depth, backbone.norm, backbone.freeze_at) == (50, "frozen_bn", 2)
    model.num_classes = 91 if name in ("retinanet", "fcos") else 90  # and the background
    with open_dict(backbone):
        backbone.weights, backbone.allow_random_frozen = None, True
    built = instantiate(model)
    published = {
        "retinanet": 34_014_999,
        "fcos": 32_269_600,
        "faster_rcnn": 41_755_286,
        "mask_rcnn": 44_401_393,
    }
    assert sum(p.numel() for p in built.parameters()) == published[name]


def test_swav() -> None:
    """The method's numbers are the paper's; length and sizes of the recipes are ours."""
    cfg = load_config(CONFIGS / "swav_folder.py", [])
    model = cfg.model
    assert (model.temperature, model.epsilon, model.iterations) == (0.1, 0.05, 3)
    assert (model.hidden_dim, model.projection_dim) == (2048, 128)
    views = instantiate(cfg.dataloader.train.mapper).views
    assert [view.size for view in views] == [224] * 2 + [96] * 6
    assert [view.area for view in views] == [(0.14, 1.0)] * 2 + [(0.05, 0.14)] * 6
    defaults = SwAV.__init__.__kwdefaults__
    assert defaults["num_prototypes"] == 3000
    assert (defaults["temperature"], defaults["epsilon"], defaults["iterations"]) == (0.1, 0.05, 3)
