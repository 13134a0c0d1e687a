"""tools/evaluate_patches.py: rows and table of a model beside its controls; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy import stats

from predet.checkpoint import save_checkpoint
from predet.d2 import instantiate
from predet.data.scenes import make_scenes
from predet.engine.config import load_config

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools/evaluate_patches.py"
CONFIG = ROOT / "configs/tiny/updetr.py"
SMALL = [
    "model.detector.transformer.hidden_dim=32",
    "model.detector.transformer.num_heads=4",
    "model.detector.transformer.ffn_dim=32",
    "model.detector.num_queries=7",
    "data.boxes.num=3",
    "data.patches.size=16",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, and checkpoints of two models that were never trained."""
    folder = tmp_path_factory.mktemp("patches")
    make_scenes(folder / "scenes", num_images=5, image_size=64, num_classes=2, seed=0, split="test")
    cfg = load_config(CONFIG, [*SMALL, "data.num_classes=1"])
    provenance = {"class_names": ["object"]}
    for seed, name in ((3, "last.pth"), (4, "other.pth")):
        torch.manual_seed(seed)
        weights = instantiate(cfg.model).state_dict()
        save_checkpoint(folder / name, {"model": weights, "provenance": provenance})
    return folder


def arguments(place: Path, config: Path = CONFIG) -> list[str]:
    return [
        *("--config-file", str(config), "--weights", str(place / "last.pth")),
        *("--seeds", "2", "--num-images", "4", f"data.test.source={place / 'scenes'}"),
    ]


def test_rows_and_table(
    tool: ModuleType, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "rows.jsonl"
    command = [*arguments(place), "--output", str(output), *SMALL]
    tool.main(command)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["seed"] for row in rows] == [0, 1]
    for row in rows:
        assert (row["images"], row["patches"]) == (4, 4 * 3)
        assert {"own", "swapped", "untrained", "mean_box"} <= row.keys()
        assert all(0 <= row[name]["iou"] <= 1 for name in ("own", "swapped", "untrained"))
    assert rows[0]["mean_box"]["iou"] != rows[1]["mean_box"]["iou"]  # other patches
    printed = capsys.readouterr().out
    assert "one box for all patches" in printed
    assert "95% of 2 draws" in printed
    for name, heading in tool.HEADINGS.items():
        line = next(line for line in printed.splitlines() if line.startswith(heading))
        iou, found, score = (
            np.mean([row[name][key] for row in rows]) for key in ("iou", "found", "score")
        )
        told = line.removeprefix(heading).split()
        assert (told[0], told[-2:]) == (f"{iou:.3f}", [f"{100 * found:.1f}%", f"{score:.2f}"])
    tool.main(command)
    again = [json.loads(line) for line in output.read_text().splitlines()]
    assert again[2:] == again[:2] == rows


def test_intervals_are_over_trainings_where_there_are_several(
    tool: ModuleType, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "rows.jsonl"
    other = ["--weights", str(place / "other.pth")]
    tool.main([*arguments(place), *other, "--output", str(output), *SMALL])
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    names = [str(place / "last.pth"), str(place / "other.pth")]
    assert [row["weights"] for row in rows] == 2 * names
    assert [row["seed"] for row in rows] == [0, 0, 1, 1]
    for first, second in (rows[:2], rows[2:]):  # a draw: one set of patches for both
        assert first["mean_box"] == second["mean_box"]
        assert first["own"] != second["own"]
    gains = [  # of each training, the mean over its draws
        np.mean([r["own"]["iou"] - r["swapped"]["iou"] for r in rows if r["weights"] == name])
        for name in names
    ]
    half = stats.t.ppf(0.975, 1) * np.std(gains, ddof=1) / 2**0.5
    mean = np.mean(gains)
    lines = capsys.readouterr().out.splitlines()
    assert "95% of 2 trainings" in lines[-9]
    less = lines[lines.index("patches of the image itself, less") + 1]
    reach = f"{mean:+.3f} {mean - half:+.3f} to {mean + half:+.3f}"
    assert " ".join(less.split()) == f"patches of another image {reach}"


def test_what_is_refused(tool: ModuleType, place: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(
        SystemExit, match="\\.pth: not a checkpoint of the config's model, UPDETR of a DETR: "
    ):
        tool.main([*arguments(place), *SMALL, "model.detector.num_queries=8"])
    detector = ROOT / "configs/tiny/detr.py"
    with pytest.raises(SystemExit, match="\\.pth: the config's model, DETR, is a detector"):
        tool.main([*arguments(place, detector)])
