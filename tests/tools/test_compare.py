"""tools/compare.py with real stages: from scenes to the page, and again with nothing to run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from predet.data.scenes import make_scenes

ROOT = Path(__file__).resolve().parents[2]


def compare(output: Path, scenes: Path, *more: str) -> str:
    command = [
        *(sys.executable, str(ROOT / "tools" / "compare.py")),
        *("--config-file", "configs/tiny/compare_demo.py", "--output", str(output)),
        *("--budget", "small", "--num-gpus", "0", f"data.train.source={scenes}", *more),
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
    sets = ("comparison.labels=[8]", *lengths)
    output = tmp_path / "out"
    plan = compare(output, scenes, *sets, "--plan")
    assert "6 stages, 0 done; left: 6 stages, 36 updates" in plan
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
    started = {path: path.stat().st_mtime for path in output.glob("stages/*.log")}
    assert len(started) == 6
    assert verdict["sentence"] in compare(output, scenes, *sets)
    assert {path: path.stat().st_mtime for path in output.glob("stages/*.log")} == started
