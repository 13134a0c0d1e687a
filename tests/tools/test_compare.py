"""tools/compare.py with real stages: from scenes to the page, and again with nothing to run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from predet.data.scenes import make_scenes
from predet.engine.config_text import as_text

ROOT = Path(__file__).resolve().parents[2]
# Two images of 64 pixels a step: what takes time is the beginning of each process.
SMALL = {
    "dataloader.train.total_batch_size": 2,
    "dataloader.train.num_workers": 0,
    "dataloader.train.mapper.augmentation.short_sides": [64],
}
LABELLED = {
    **SMALL,
    "dataloader.test.num_workers": 0,
    "dataloader.test.mapper.augmentation.short_sides": [64],
}
BOXES = {**SMALL, "data.store": "stage:boxes", "data.selection.top_k": 5}


def compare(output: Path, scenes: Path, *more: str) -> str:
    command = [
        *(sys.executable, str(ROOT / "tools" / "compare.py")),
        *("--config-file", "configs/tiny/compare_demo.py", "--output", str(output)),
        *(
            "--budget",
            "small",
            "--jobs",
            "3",
            "--num-gpus",
            "0",
            f"data.train.source={scenes}",
            *more,
        ),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return done.stdout


@pytest.mark.slow
def test_real_stages_become_a_page(tmp_path: Path) -> None:
    scenes = tmp_path / "scenes"
    for split, count in (("train", 16), ("test", 8)):
        make_scenes(scenes, num_images=count, image_size=64, num_classes=2, seed=count, split=split)
    lengths = ("updates.teacher=6", "updates.pretrain=4", "updates.finetune=6")
    keys = {"teacher": LABELLED, "finetune": LABELLED, "pretrain": BOXES}
    small = [f"stages.{stage}.set={as_text(values)}" for stage, values in keys.items()]
    sets = ("comparison.labels=[8]", *lengths, *small)
    output = tmp_path / "out"
    shown = compare(output, scenes, *sets)
    content = json.loads((output / "comparison.json").read_text())
    rows = {row["arm"]: row for row in content["rows"]}
    assert set(rows) == {"scratch", "self_training", "scratch_10", "teacher_10"}
    assert rows["self_training"]["updates"] == rows["scratch_10"]["updates"] == 10
    assert [step for step, _ in rows["self_training"]["curve"]] == [2, 4, 6]
    assert all(0 <= row["results"]["AP"] <= 100 for row in rows.values())
    assert content["missing"] == 0
    assert content["leakage"]["copies"] == []
    (verdict,) = content["verdicts"]
    assert verdict["answer"] == "cannot tell"
    assert verdict["sentence"] in shown
    page = (output / "comparison.html").read_text()
    assert verdict["sentence"] in page.replace("&gt;", ">")
    kept = {path.name for path in output.glob("stages/*/checkpoints/*")}
    assert kept == {"last.pth"}
    started = {path: path.stat().st_mtime for path in output.glob("stages/*.log")}
    assert len(started) == 6
    assert "6 stages, 6 done; left: 0 stages, 0 updates" in compare(output, scenes, *sets, "--plan")
    of_one = compare(output, scenes, *sets, "--plan", "--arm", "scra*h", "--arm", "teacher_10")
    assert "2 stages, 2 done" in of_one  # scratch is the teacher, too
    assert verdict["sentence"] in compare(output, scenes, *sets)
    assert {path: path.stat().st_mtime for path in output.glob("stages/*.log")} == started
