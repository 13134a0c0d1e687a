"""A run that was killed and goes on ends with the same weights, to the bit."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import pytest
import torch
from engine_processes import Job, kill_and_resume, run_once

from predet.checkpoint import read_checkpoint
from predet.d2 import SIDE
from predet.data.scenes import make_scenes
from predet.engine import ema, step, trainer

OTHER_SIDE = "embedded" if SIDE == "detectron2" else "detectron2"

ROOT = Path(__file__).resolve().parents[2]
SLOW_STEPS = {"STANDIN_DELAY": "0.03"}  # so that a signal hits a given step


def argv(config: str, output: Path, *overrides: str) -> list[str]:
    return [
        "--config-file",
        config,
        "--resume",
        f"train.output_dir={output}",
        "train.log_period=1",
        "train.eval_period=7",
        "train.max_iter=24",
        *overrides,
    ]


def differences(first: Path, second: Path) -> list[str]:
    """Names of everything in two last checkpoints that is not equal to the bit."""
    states = [read_checkpoint(path / "checkpoints/last.pth") for path in (first, second)]
    for state in states:
        del state["config"]
        items = state["config_items"]
        for key in ("train.output_dir", "dataloader.train.num_workers"):
            items.pop(key)
    return list(_different(states[0], states[1], "state"))


def _different(a, b, where):
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from _different(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if not (a.dtype == b.dtype and torch.equal(a, b)):
            yield where
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _different(x, y, f"{where}[{index}]")
    elif a != b and not (a != a and b != b):  # NaN: an average over no objects
        yield where


def history(output: Path) -> list[dict]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    measured = ("seconds_per_step", "data_share", "wait_share", "slowest_rank", "memory_gb")
    return [{k: v for k, v in row.items() if k not in measured} for row in rows]


@pytest.mark.parametrize(
    ("processes", "workers", "kills"),
    [
        (1, 0, [4, 13]),
        pytest.param(1, 2, [9, 16, 21], marks=pytest.mark.slow),
        (2, 0, [12]),
        pytest.param(2, 2, [6, 17], marks=pytest.mark.slow),
        pytest.param(3, 0, [12], marks=pytest.mark.slow),
    ],
)
def test_killed_run_ends_like_an_uninterrupted_one(
    tiny_config: str, tmp_path: Path, processes: int, workers: int, kills: list[int]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    batch = f"dataloader.train.total_batch_size={4 if processes < 3 else 6}"
    run_once(argv(tiny_config, whole, batch), log=tmp_path / "whole.log", processes=processes)
    kill_and_resume(
        argv(tiny_config, killed, batch, f"dataloader.train.num_workers={workers}"),
        kills,
        output_dir=killed,
        log=tmp_path / "killed.log",
        processes=processes,
        env=SLOW_STEPS,
    )
    assert (tmp_path / "killed.log").read_text().count("resuming from") >= 1
    assert differences(whole, killed) == []
    assert history(whole) == history(killed)  # nothing twice, nothing lost
    best = [read_checkpoint(path / "checkpoints/best.pth") for path in (whole, killed)]
    assert list(_different(best[0]["ema"], best[1]["ema"], "ema")) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment(tiny_config: str, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    kills = sorted(rng.sample(range(1, 23), 3))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    precision = ["train.precision=bf16", "train.accumulation_steps=2"]
    run_once(argv(tiny_config, whole, *precision), log=tmp_path / "whole.log")
    kill_and_resume(
        argv(tiny_config, killed, *precision),
        kills,
        output_dir=killed,
        log=tmp_path / "log",
        env={"STANDIN_DELAY": str(rng.uniform(0.005, 0.02))},
    )
    assert differences(whole, killed) == [], f"killed after {kills}"


DETECTOR = (
    "model.transformer.hidden_dim=64",
    "model.queries.hidden_dim=64",
    "model.transformer.ffn_dim=32",
    "model.transformer.num_encoder_layers=1",
    "model.transformer.dropout=0.1",
    "model.queries.num_queries=10",
    "dataloader.train.mapper.augmentation.short_sides=[32,48]",
    "dataloader.train.mapper.augmentation.max_size=64",
    "dataloader.train.total_batch_size=2",
    "data.train.split=null",
    "data.test.split=null",
    "train.ema_decay=0.9",
    "train.checkpoint_period=2",
    "train.log_period=1",
    "train.eval_period=4",
)


@pytest.mark.parametrize(
    ("processes", "workers", "kills", "options"),
    [
        (1, 0, [3], ["train.max_iter=5", "dataloader.test=null"]),
        pytest.param(1, 2, [2, 5], ["train.max_iter=8"], marks=pytest.mark.slow),
        pytest.param(2, 2, [4], ["train.max_iter=6"], marks=pytest.mark.slow),
    ],
)
def test_killed_detector_ends_like_an_uninterrupted_one(
    tmp_path: Path, processes: int, workers: int, kills: list[int], options: list[str]
) -> None:
    """Deformable DETR, two-stage, on drawn scenes: augmentation, matching, dropout."""
    scenes = tmp_path / "scenes"
    make_scenes(scenes, num_images=8, image_size=48, num_classes=3, seed=0)
    config = str(ROOT / "configs/tiny/deformable_detr.py")
    data = [f"data.train.source={scenes}", f"data.test.source={scenes}"]

    def command(output: Path, num_workers: int) -> list[str]:
        head = ["--config-file", config, "--num-gpus", "0", "--resume"]
        own = [f"train.output_dir={output}", f"dataloader.train.num_workers={num_workers}"]
        return [*head, *own, *data, *DETECTOR, *options]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_once(command(whole, 0), log=tmp_path / "whole.log", processes=processes)
    kill_and_resume(
        command(killed, workers),
        kills,
        output_dir=killed,
        log=tmp_path / "killed.log",
        processes=processes,
    )
    assert "resuming from" in (tmp_path / "killed.log").read_text()
    assert differences(whole, killed) == []
    assert history(whole) == history(killed)


@pytest.mark.slow
def test_detector_trains_where_one_rank_has_no_boxes(tmp_path: Path) -> None:
    """Two ranks, one of them always without targets: the same losses as one process."""
    scenes = tmp_path / "scenes"
    make_scenes(scenes, num_images=2, image_size=48, num_classes=3, seed=0)
    labels = json.loads((scenes / "annotations.json").read_text())
    labels["annotations"] = [a for a in labels["annotations"] if a["image_id"] == 1]
    (scenes / "annotations.json").write_text(json.dumps(labels))
    for processes in (1, 2):
        head = ["--config-file", str(ROOT / "configs/tiny/deformable_detr.py")]
        head += ["--num-gpus", "0", f"train.output_dir={tmp_path / str(processes)}"]
        more = ["dataloader.train.num_workers=0", "dataloader.test=null", "train.max_iter=3"]
        more += ["model.transformer.dropout=0", f"data.train.source={scenes}"]
        augmentation = "dataloader.train.mapper.augmentation"  # square: nothing is padded
        more += [f"{augmentation}.{name}=[48]" for name in ("short_sides", "crop_short_sides")]
        more += [f"{augmentation}.crop_size=[48,48]"]
        run_once([*head, *DETECTOR, *more], log=tmp_path / "log", processes=processes)
    one, two = ([row["loss"] for row in history(tmp_path / name)] for name in ("1", "2"))
    assert one == pytest.approx(two, rel=2e-3)


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_saves_and_exits_with_zero(
    tiny_config: str, tmp_path: Path, processes: int
) -> None:
    """Only rank 0 is told; all ranks stop after the same step."""
    command = argv(tiny_config, tmp_path / "run", "train.checkpoint_period=0")
    job = Job(command, log=tmp_path / "log", processes=processes, env={"STANDIN_TERM_AT": "10"})
    job.succeed()
    assert "stopped after step 11 of 24" in job.text()
    assert read_checkpoint(tmp_path / "run/checkpoints/last.pth")["step"] == 11
    assert not (tmp_path / "run/results.json").exists()
    if processes == 1:
        run_once(command, log=tmp_path / "log")
        assert json.loads((tmp_path / "run/results.json").read_text())["step"] == 24


def test_first_sigint_saves_and_exits_with_zero(tiny_config: str, tmp_path: Path) -> None:
    job = Job(argv(tiny_config, tmp_path / "run"), log=tmp_path / "log", env=SLOW_STEPS)
    job.signal_after_step(3, signal.SIGINT, tmp_path / "run/metrics.jsonl")
    job.succeed()
    assert 3 < read_checkpoint(tmp_path / "run/checkpoints/last.pth")["step"] < 24


class _Killed(BaseException):
    """Stands for SIGKILL where the test stays in one process."""


def kill_in_process(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    run = step.OptimizerStep.run

    def dying(self, number, batches, **more):
        if number == at:
            raise _Killed
        return run(self, number, batches, **more)

    monkeypatch.setattr(step.OptimizerStep, "run", dying)


def resume_in_process(run_tiny, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    """Run until step 12 (the last checkpoint holds 10), then go on in new objects."""
    with monkeypatch.context() as patch:
        kill_in_process(patch, at=12)
        with pytest.raises(_Killed):
            run_tiny(*overrides, output="killed")
    torch.manual_seed(991)  # a new process would not know the old generators' state
    torch.randn(3)
    run_tiny(*overrides, output="killed", resume=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_resume_is_exact_in_every_precision(run_tiny, monkeypatch, tmp_path, precision) -> None:
    option = f"train.precision={precision}"
    run_tiny(option, output="whole")
    resume_in_process(run_tiny, monkeypatch, option)
    assert differences(tmp_path / "whole", tmp_path / "killed") == []
    assert history(tmp_path / "whole") == history(tmp_path / "killed")  # averages over 9..12 too


def forget_ema(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ema.EMA, "load_state_dict", lambda self, state: None)


def forget_seeding(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(step, "seed_all", lambda *place: None)


def forget_optimizer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.optim.AdamW, "load_state_dict", lambda self, state: None)


def forget_step(patch: pytest.MonkeyPatch) -> None:
    load = trainer.Trainer._load

    def wrong(self, state):
        load(self, state)
        self.step += 1

    patch.setattr(trainer.Trainer, "_load", wrong)


@pytest.mark.parametrize("forget", [forget_ema, forget_seeding, forget_optimizer, forget_step])
def test_a_wrong_resume_would_be_noticed(run_tiny, monkeypatch, tmp_path, forget) -> None:
    forget(monkeypatch)
    run_tiny(output="whole")
    resume_in_process(run_tiny, monkeypatch)
    assert differences(tmp_path / "whole", tmp_path / "killed") != []


def test_killed_between_checkpoint_and_evaluation(run_tiny, monkeypatch, tmp_path) -> None:
    """The evaluation that was due is made up for, once."""
    run_tiny(output="whole")
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_evaluate", _die)
        with pytest.raises(_Killed):
            run_tiny(output="killed")
    assert read_checkpoint(tmp_path / "killed/checkpoints/last.pth")["step"] == 8
    run_tiny(output="killed", resume=True)
    assert differences(tmp_path / "whole", tmp_path / "killed") == []
    assert history(tmp_path / "whole") == history(tmp_path / "killed")


def _die(self) -> None:
    raise _Killed


def test_truncated_last_checkpoint_falls_back(run_tiny, monkeypatch, tmp_path, caplog) -> None:
    run_tiny(output="whole")
    with monkeypatch.context() as patch:
        kill_in_process(patch, at=12)
        with pytest.raises(_Killed):
            run_tiny(output="killed")
    last = tmp_path / "killed/checkpoints/last.pth"
    assert read_checkpoint(last)["step"] == 10
    last.write_bytes(last.read_bytes()[:-500])
    with caplog.at_level("INFO"):
        run_tiny(output="killed", resume=True)
    assert "trying the checkpoint before it" in caplog.text
    assert "8 steps are done" in caplog.text
    assert differences(tmp_path / "whole", tmp_path / "killed") == []


def test_finished_run_is_left_alone(run_tiny, tmp_path, caplog) -> None:
    results = run_tiny()
    before = (tmp_path / "run/checkpoints/last.pth").read_bytes()
    with caplog.at_level("INFO"):
        assert run_tiny(resume=True) == results
    assert (tmp_path / "run/checkpoints/last.pth").read_bytes() == before
    assert "20 steps are done" in caplog.text


def test_checkpoints_are_not_overwritten_without_resume(run_tiny, tmp_path) -> None:
    run_tiny("train.max_iter=6")
    before = (tmp_path / "run/checkpoints/last.pth").read_bytes()
    with pytest.raises(ValueError, match="holds checkpoints of a run: add --resume"):
        run_tiny("train.max_iter=6")
    assert (tmp_path / "run/checkpoints/last.pth").read_bytes() == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.seed=4", r"train\.seed: 3 then, 4 now"),
        ("optimizer.lr=0.5", r"optimizer\.lr: 0\.01 then, 0\.5 now"),
        ("model.dropout=0.3", r"model\.dropout: not set then, 0\.3 now"),
        ("dataloader.train.dataset.num_images=13", r"12 images, .* then, .*13 images"),
        ("dataloader.train.dataset.seed=5", r"fingerprint \w+\) then"),
    ],
)
def test_another_run_is_refused(run_tiny, override: str, message: str) -> None:
    run_tiny("train.max_iter=6", "dataloader.test=null")
    with pytest.raises(ValueError, match=message):
        run_tiny("train.max_iter=6", "dataloader.test=null", override, resume=True)


def test_reporting_may_change_on_resume(run_tiny) -> None:
    run_tiny("train.max_iter=6")
    changed = ["train.log_period=2", "train.eval_period=3", "dataloader.train.num_workers=1"]
    run_tiny("train.max_iter=6", *changed, "data.test.num_images=6", resume=True)


def test_another_detectron2_side_is_refused(run_tiny, tmp_path) -> None:
    from predet.checkpoint import save_checkpoint

    run_tiny("train.max_iter=6")
    path = tmp_path / "run/checkpoints/last.pth"
    state = read_checkpoint(path)
    state["provenance"]["d2"] = OTHER_SIDE
    save_checkpoint(path, state)
    with pytest.raises(ValueError, match=f"Detectron2 side: '{OTHER_SIDE}' then"):
        run_tiny("train.max_iter=6", resume=True)
