"""Weights that a config names for a backbone are read where nothing else brings them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from predet.checkpoint import read_checkpoint
from predet.data.scenes import make_scenes
from predet.engine.config import load_config
from predet.engine.settings import TrainSettings
from predet.engine.stopping import StopRequest
from predet.engine.train_net import train
from predet.modeling.backbone import ResNet

CONFIGS = Path(__file__).resolve().parents[2] / "configs/tiny"
SIZES = "dataloader.train.mapper.augmentation"
# Frozen norms and stages, as where ImageNet's weights are to be downloaded.
BACKBONE = {"depth": 18, "norm": "frozen_bn", "freeze_at": 2}
DETECTOR = {
    **{f"backbone.{key}": value for key, value in BACKBONE.items()},
    "transformer.num_encoder_layers": 1,
    "transformer.num_decoder_layers": 1,
}
KEYS = [
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
    "dataloader.test=null",
    f"{SIZES}.short_sides=[64]",
    f"{SIZES}.crop_short_sides=[64]",
    f"{SIZES}.crop_size=[40,64]",
    "train.max_iter=2",
    "optimizer.lr=0",  # what is saved is what was read
    "optimizer.weight_decay=0",
]


def run(
    folder: Path, output: str, *overrides: str, config: str = "detr", stop_first: bool = False
) -> dict:
    """Train on the scenes of a folder, from its `backbone.pth`; the weights of the end."""
    data, place = ("train", "model") if config == "detr" else ("unlabeled", "model.detector")
    keys = [
        *(f"{place}.{key}={value}" for key, value in DETECTOR.items()),
        f"{place}.backbone.weights={folder / 'backbone.pth'}",
        f"data.{data}.source={folder / 'scenes'}",
        f"data.{data}.split=train",
        f"train.output_dir={folder / output}",
    ]
    cfg = load_config(CONFIGS / f"{config}.py", [*KEYS, *keys, *overrides])
    stop = StopRequest()
    stop.requested = stop_first
    train(cfg, TrainSettings.from_config(cfg.train), num_gpus=0, resume=True, stop=stop)
    return read_checkpoint(folder / output / "checkpoints/last.pth")


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Tensor]:
    """What lies in `backbone.pth`, beside scenes."""
    scenes = {"num_images": 3, "image_size": 64, "num_classes": 2, "seed": 0}
    make_scenes(tmp_path / "scenes", split="train", **scenes)
    torch.manual_seed(1)
    weights = ResNet(weights=None, allow_random_frozen=True, **BACKBONE).state_dict()
    torch.save(weights, tmp_path / "backbone.pth")
    return weights


def test_they_may_be_gone_where_a_checkpoint_brings_the_backbone(
    given: dict[str, Tensor], tmp_path: Path
) -> None:
    first = run(tmp_path, "teacher", stop_first=True)
    (tmp_path / "backbone.pth").unlink()
    last = run(tmp_path, "teacher")  # goes on
    assert (first["step"], last["step"]) == (1, 2)

    init = f"train.init_checkpoint={tmp_path / 'teacher/checkpoints/last.pth'}"
    for number, reinit in enumerate(("auto", "[class_head]")):
        tuned = run(tmp_path, f"tuned_{number}", init, f"train.reinit={reinit}", "train.seed=9")
        for name, value in given.items():
            assert tuned["model"][f"backbone.{name}"].equal(value), name
    for number, reinit in enumerate(("[backbone]", "[backbone.conv1]", "[all-but-class_head]")):
        with pytest.raises((OSError, ValueError), match=r"backbone\.pth"):
            run(tmp_path, f"fresh_{number}", init, f"train.reinit={reinit}")


def test_what_is_frozen_stays_so_without_them(given: dict[str, Tensor], tmp_path: Path) -> None:
    """Pre-training freezes a backbone that has weights, also when it goes on without their file."""
    keys = [
        "model.patch_encoder.backbone.norm=frozen_bn",
        "data.patches.size=32",
        "optimizer.lr=0.01",
    ]
    run(tmp_path, "detreg", *keys, config="detreg_detr", stop_first=True)
    (tmp_path / "backbone.pth").unlink()
    last = run(tmp_path, "detreg", *keys, config="detreg_detr")
    assert last["step"] == 2
    for name, value in given.items():
        assert last["model"][f"detector.backbone.{name}"].equal(value), name
    encoder = {n: v for n, v in last["model"].items() if n.startswith("patch_encoder.backbone.")}
    assert encoder
    assert all(
        v.equal(given[n.removeprefix("patch_encoder.backbone.")]) for n, v in encoder.items()
    )
    with pytest.raises((OSError, ValueError), match=r"backbone\.pth"):
        run(tmp_path, "anew", *keys, config="detreg_detr")
