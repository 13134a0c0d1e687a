"""The measuring tool, from files on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from predet.checkpoint import save_checkpoint
from predet.d2 import instantiate
from predet.data.scenes import make_scenes
from predet.engine.config import load_config
from predet.engine.distributed import seed_all

TOOL = Path(__file__).parents[2] / "tools" / "knn_regions.py"
CONFIG = "configs/tiny/image_domain.py"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, and a checkpoint of the weights that the random backbone has under seed 1."""
    folder = tmp_path_factory.mktemp("regions")
    for split, count in (("train", 12), ("test", 8)):
        make_scenes(
            folder / "data", num_images=count, image_size=64, num_classes=2, seed=0, split=split
        )
    seed_all(1)
    backbone = instantiate(load_config(CONFIG, []).model.backbone)
    state = {"backbone." + name: value for name, value in backbone.state_dict().items()}
    save_checkpoint(folder / "last.pth", {"model": state, "ema": {}, "step": 1})
    return folder


def arguments(place: Path, *more: str) -> list[str]:
    return [
        *("--config-file", CONFIG, "--data", str(place / "data"), "--split", "train"),
        *("--test-split", "test", "--size", "32", "--per-class", "8", "--k", "3", *more),
    ]


def test_table_and_rows(tool, place, capsys):
    output = place / "rows.json"
    weights = str(place / "last.pth")
    tool.main(arguments(place, "--weights", weights, "--seeds", "2", "--output", str(output)))
    rows = json.loads(output.read_text())
    found = {(r["features"], r["map"], r["seed"]): r["accuracy"] for r in rows}
    assert len(rows) == 2 * (1 + 1 + 4 + 4)
    assert all(0 <= value <= 100 for value in found.values())
    maps = ("stride 8", "stride 16", "stride 32", "all")
    # The checkpoint holds what the random backbone is under seed 1.
    assert all(found[weights, m, 1] == found["random backbone", m, 1] for m in maps)
    assert any(found[weights, m, 0] != found["random backbone", m, 0] for m in maps)
    lines = capsys.readouterr().out.splitlines()  # of the log, too
    assert any(
        line.split() == ["stride", "8", "stride", "16", "stride", "32", "all"] for line in lines
    )
    mean = (found["raw pixels", "all", 0] + found["raw pixels", "all", 1]) / 2
    assert f"{mean:.1f} +-" in next(line for line in lines if line.startswith("raw pixels"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--k", "99"], r"k must lie in \[1, 16\], .* got 99"),
        (["--weights", "nowhere.pth"], "found none at nowhere.pth"),
    ],
)
def test_bad_input_ends_with_one_line(tool, place, more, message):
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        tool.main(arguments(place, *more))


def test_random_backbone_is_a_control_whatever_its_norm(tool, place, capsys):
    tool.main(arguments(place, "--seeds", "1", "model.backbone.norm=frozen_bn"))
    assert "random backbone" in capsys.readouterr().out


def test_weights_that_are_not_finite_are_refused(tool, place, tmp_path):
    state = torch.load(place / "last.pth", weights_only=True)["model"]
    state["backbone.conv1.weight"] += float("nan")
    save_checkpoint(tmp_path / "broken.pth", {"model": state, "ema": {}})
    with pytest.raises(SystemExit, match="regions are not finite"):
        tool.main(arguments(place, "--weights", str(tmp_path / "broken.pth"), "--seeds", "1"))
