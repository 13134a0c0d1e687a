"""Through the training tool: they train, are stopped, go on to the bit, and are evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from predet.checkpoint import read_checkpoint
from predet.data.scenes import make_scenes
from predet.engine.config import load_config
from predet.engine.settings import TrainSettings
from predet.engine.stopping import StopRequest
from predet.engine.train_net import evaluate_only, train

STEPS = 3


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for split, count in (("train", 5), ("test", 3)):
        make_scenes(folder, num_images=count, image_size=64, num_classes=2, seed=0, split=split)
    return folder


def config_of(name: str, scenes: Path, output: Path, *overrides: str):
    keys = {
        "data.train.source": scenes,
        "data.test.source": scenes,
        "dataloader.train.mapper.augmentation.short_sides": [64, 80],
        "dataloader.train.total_batch_size": 2,
        "dataloader.train.num_workers": 0,
        "dataloader.test.num_workers": 0,
        "dataloader.test.batch_size": 2,
        "dataloader.test.mapper.augmentation.short_sides": [80],
        "model.score_threshold": 0.0,  # three steps make nobody certain
        "train.output_dir": output,
        "train.max_iter": STEPS,
        "train.log_period": 1,
        "train.eval_period": 0,
    }
    return load_config(
        f"configs/tiny/{name}.py", [*(f"{k}={v}" for k, v in keys.items()), *overrides]
    )


def run(name: str, scenes: Path, output: Path, *, stop_first: bool = False) -> dict[str, float]:
    """Train to the end, or stop after the first step; the last evaluation."""
    cfg = config_of(name, scenes, output)
    stop = StopRequest()
    stop.requested = stop_first
    return train(cfg, TrainSettings.from_config(cfg.train), num_gpus=0, resume=True, stop=stop)


@pytest.mark.slow
def test_a_run_is_evaluated_and_goes_on_exactly(name: str, scenes: Path, tmp_path: Path) -> None:
    results = run(name, scenes, tmp_path / "whole")
    whole = read_checkpoint(tmp_path / "whole/checkpoints/last.pth")
    assert run(name, scenes, tmp_path / "parts", stop_first=True) == {}
    first = read_checkpoint(tmp_path / "parts/checkpoints/last.pth")
    again = run(name, scenes, tmp_path / "parts")
    parts = read_checkpoint(tmp_path / "parts/checkpoints/last.pth")
    assert (first["step"], parts["step"], whole["step"]) == (1, STEPS, STEPS)
    assert results["AP50"] >= 0
    assert again == pytest.approx(results, rel=0, abs=0, nan_ok=True)
    for key, value in whole["model"].items():
        assert value.equal(parts["model"][key]), key
    moved = [k for k, value in first["model"].items() if not value.equal(whole["model"][k])]
    assert len(moved) > 40
    rows = [json.loads(r) for r in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert len([row for row in rows if "loss" in row]) == STEPS
    checkpoint = f"train.init_checkpoint={tmp_path / 'whole/checkpoints/last.pth'}"
    cfg = config_of(name, scenes, tmp_path / "whole", checkpoint)
    alone = evaluate_only(cfg, TrainSettings.from_config(cfg.train), num_gpus=0)
    assert alone == pytest.approx(results, nan_ok=True)
