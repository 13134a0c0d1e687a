"""The chain of tools/self_train.py: which stage reads what, for one round and for several."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from predet.d2.embedded.overrides import parse_override
from predet.data.box_store import BoxStore
from predet.data.scenes import make_scenes
from predet.engine.stages import StageRecord

TOOL = Path(__file__).resolve().parents[2] / "tools/self_train.py"
ARGUMENTS = ["--labeled=few", "--test=held", "--unlabeled=many", "--output=out", "--num-gpus=0"]


def stages(tool: ModuleType, *more: str) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Name -> command and needs."""
    args = tool.make_parser().parse_args([*ARGUMENTS, *more])
    return {stage.name: (stage.command, stage.needs) for stage in tool.chain(args)}


def test_one_round_is_the_papers_chain(tool: ModuleType) -> None:
    found = stages(tool)
    drawn = [f"draw_{name}" for name in ("detections", "pseudo_labels", "curves")]
    assert list(found) == ["teacher", "pseudo_labels", "pretrain", "finetune", *drawn]
    assert found["pseudo_labels"][1] == ("teacher",)
    assert "data.store=out/pseudo_labels" in found["pretrain"][0]
    assert "train.init_checkpoint=out/pretrain/checkpoints/last.pth" in found["finetune"][0]


def test_folders_may_have_any_name(tool: ModuleType) -> None:
    names = {
        "--labeled": "few, good",
        "--test": "[held] out's",
        "--unlabeled": "2024",
        "--output": "my out",
    }
    found = stages(tool, *(f"{option}={name}" for option, name in names.items()))
    told = dict(
        parse_override(part)
        for stage in ("pretrain", "finetune")
        for part in found[stage][0]
        if part.startswith(("data.", "train."))
    )
    assert told["data.train.source"] == "few, good"
    assert told["data.test.source"] == "[held] out's"
    assert told["data.unlabeled.source"] == "2024"
    assert told["data.store"] == "my out/pseudo_labels"
    assert told["data.train.seed"] == 0
    assert told["train.init_checkpoint"] == "my out/pretrain/checkpoints/last.pth"
    assert told["train.output_dir"] == "my out/finetune"


def test_in_further_rounds_the_student_labels_and_nothing_else_is_handed_on(
    tool: ModuleType,
) -> None:
    found = stages(tool, "--rounds=3")
    first = stages(tool)
    assert list(found)[:10] == [
        "teacher",
        *(f"{name}{own}" for own in ("", "_2", "_3")
          for name in ("pseudo_labels", "pretrain", "finetune")),
    ]  # fmt: skip
    for name in ("teacher", "pseudo_labels", "pretrain", "finetune"):
        assert found[name] == first[name]
    for own, before in (("_2", ""), ("_3", "_2")):
        label, needs = found[f"pseudo_labels{own}"]
        assert needs == (f"finetune{before}",)
        assert f"out/finetune{before}/checkpoints/last.pth" in label
        assert f"out/finetune{before}/config.resolved.py" in label
        pretrain, needs = found[f"pretrain{own}"]
        assert needs == (f"pseudo_labels{own}",)
        assert f"data.store=out/pseudo_labels{own}" in pretrain
        assert not any("init_checkpoint" in part for part in pretrain)
        finetune, needs = found[f"finetune{own}"]
        assert needs == (f"pretrain{own}",)
        assert f"train.init_checkpoint=out/pretrain{own}/checkpoints/last.pth" in finetune
    detections, needs = found["draw_detections"]
    assert needs == ("finetune_3",)
    assert "teacher=out/teacher/checkpoints/last.pth" in detections
    assert "student=out/finetune_3/checkpoints/last.pth" in detections


def test_the_summary_has_a_row_for_each_round(tool: ModuleType, tmp_path: Path) -> None:
    for name, ap in (("teacher", 10.0), ("finetune", 20.0), ("finetune_2", 30.0)):
        (tmp_path / name).mkdir()
        results = {"results": dict.fromkeys(tool.METRICS, ap)}
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    records = [StageRecord("teacher", (), 5.0, 5.0, 0, "")]
    text = tool.summary(2, records, tmp_path)
    assert "student, pre-trained, round 2" in text
    assert "30.0" in text
    one = tool.summary(1, records, tmp_path)
    assert "round" not in one
    assert "30.0" not in one


def test_no_rounds_are_refused(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tool.make_parser().parse_args([*ARGUMENTS, "--rounds=0"])
    assert "must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.slow
def test_two_rounds_on_scenes(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From images to the summary by one command, and the same command again."""
    for split, count in (("train", 8), ("val", 2)):
        make_scenes(tmp_path / "data", num_images=count, num_classes=2, seed=0, split=split)
    out = tmp_path / "out"
    short = "train.max_iter=2 dataloader.train.total_batch_size=2 dataloader.train.num_workers=0"
    labelled = f"{short} dataloader.test.num_workers=0 train.eval_period=2"
    command = [
        *("--labeled", str(tmp_path / "data"), "--labeled-split=train", "--num-labeled=4"),
        *("--test", str(tmp_path / "data"), "--test-split=val", "--num-gpus=0", "--rounds=2"),
        *("--unlabeled", str(tmp_path / "data/train"), "--output", str(out)),
        *("--detector-config=configs/tiny/deformable_detr.py", f"--pretrain={short}"),
        *("--pretrain-config=configs/tiny/selftrain.py", f"--finetune={labelled}"),
        f"--teacher={labelled}",
    ]
    tool.main(command)
    summary = (out / "summary.txt").read_text()
    assert summary in capsys.readouterr().out
    assert "student, pre-trained, round 2" in summary
    stores = [BoxStore(out / name) for name in ("pseudo_labels", "pseudo_labels_2")]
    assert all(len(store) == 8 for store in stores)
    teachers = [store.meta["teacher"] for store in stores]
    assert teachers[0] != teachers[1]  # the student of the first round
    assert all((out / "pictures" / name).stat().st_size > 1000 for name in tool.PICTURES)
    made = {path: path.stat().st_mtime_ns for path in out.glob("*/checkpoints/*.pth")}
    assert len({path.parents[1].name for path in made}) == 5
    tool.main(command)
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/checkpoints/*.pth")} == made
    assert (out / "summary.txt").read_text() == summary
