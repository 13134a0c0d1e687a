"""Through the training tool, on a folder of images: exact resume, and what the run is good for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from predet.checkpoint import read_checkpoint
from predet.d2 import instantiate
from predet.data.scenes import make_scenes
from predet.engine.config import load_config
from predet.engine.settings import TrainSettings
from predet.engine.stopping import StopRequest
from predet.engine.train_net import train
from predet.modeling.backbone import ResNet

CONFIG = "configs/tiny/image_domain.py"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    make_scenes(folder, num_images=5, image_size=48, num_classes=2, seed=0)
    return folder / "images"


def run(images: Path, output: Path, *overrides: str, stop_first: bool = False) -> dict:
    """Train two steps, or stop after the first one; the checkpoint."""
    keys = {
        "data.unlabeled.source": images,
        "data.view.size": 32,
        "dataloader.train.total_batch_size": 2,
        "dataloader.train.num_workers": 0,
        "train.output_dir": output,
        "train.max_iter": 2,
        "train.log_period": 1,
    }
    cfg = load_config(CONFIG, [*(f"{key}={value}" for key, value in keys.items()), *overrides])
    stop = StopRequest()
    stop.requested = stop_first
    train(cfg, TrainSettings.from_config(cfg.train), num_gpus=0, resume=True, stop=stop)
    return read_checkpoint(output / "checkpoints" / "last.pth")


@pytest.mark.parametrize("norm", ["gn", "bn"])
def test_a_run_that_was_stopped_ends_with_the_same_bits(images, tmp_path, norm):
    override = f"model.backbone.norm={norm}"
    whole = run(images, tmp_path / "whole", override)
    first = run(images, tmp_path / "parts", override, stop_first=True)
    parts = run(images, tmp_path / "parts", override)
    assert (first["step"], parts["step"]) == (1, 2)
    for name, value in whole["model"].items():
        assert value.equal(parts["model"][name]), name
    moved = [n for n, value in first["model"].items() if not value.equal(whole["model"][n])]
    assert len(moved) > 60


def test_the_checkpoint_is_a_frozen_region_encoder(images, tmp_path):
    """Pre-trained with trainable norms, loaded with frozen ones, none of it trained."""
    state = run(images, tmp_path / "run", "model.backbone.norm=bn")["model"]
    path = str(tmp_path / "run/checkpoints/last.pth")
    encoder = ResNet(depth=18, weights=path, norm="frozen_bn", freeze_at=5, out_stages=(3, 4, 5))
    assert not [name for name, p in encoder.named_parameters() if p.requires_grad]
    cfg = load_config(CONFIG, ["model.backbone.norm=bn"])
    model = instantiate(cfg.model)
    model.load_state_dict(state)
    crops = [
        torch.from_numpy(np.random.default_rng(i).integers(0, 256, (3, 64, 64), np.uint8))
        for i in range(3)
    ]
    with torch.no_grad():
        expected = torch.stack(
            [row["features"] for row in model.eval()([{"image": c} for c in crops])]
        )
        maps = encoder(model.normalizer(crops).pixels)
    found = torch.cat([m.mean(dim=(2, 3)) for m in maps], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_batch_of_one_is_refused_before_any_step(images, tmp_path):
    with pytest.raises(ValueError, match="at least 2 images in a batch of all processes, got 1"):
        run(images, tmp_path / "one", "dataloader.train.total_batch_size=1")
    assert not (tmp_path / "one/checkpoints/last.pth").exists()
