"""The command line: processes, torchrun, evaluation, and what two ranks do together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from engine_processes import Job, _free_port, last_step

from predet.checkpoint import read_checkpoint
from predet.engine import train_net

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("train.max_iter=4", "train.log_period=1", "train.eval_period=0", "dataloader.test=null")


def command(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *argv],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


def losses(output: Path) -> list[float]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize("starter", ["launcher", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_two_processes_are_started(tiny_config: str, tmp_path: Path, starter: str) -> None:
    """By `--num-gpus 2` and by torchrun; both train what two ranks train."""
    output, expected = tmp_path / starter, tmp_path / "expected"
    options = ["--config-file", tiny_config]
    argv = [str(ROOT / "tools/lazyconfig_train_net.py"), *options]
    if starter == "torchrun":
        runner = ["-m", "torch.distributed.run", "--nproc-per-node=2"]
        argv = [*runner, "--master-addr=127.0.0.1", f"--master-port={_free_port()}", *argv]
    else:
        argv += ["--num-gpus", "2"]
    done = command(*argv, f"train.output_dir={output}", *SHORT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 4/4" in done.stdout
    if starter == "launcher":
        assert "2 processes on the CPU" in done.stdout
    Job(
        [*options, f"train.output_dir={expected}", *SHORT], log=tmp_path / "log", processes=2
    ).succeed()
    states = [read_checkpoint(path / "checkpoints/last.pth") for path in (output, expected)]
    assert all(state["provenance"]["world_size"] == 2 for state in states)
    for name, value in states[0]["model"].items():
        assert value.equal(states[1]["model"][name]), name
    assert (output / "train.log").exists()
    assert (output / "train.rank1.log").exists()
    assert len(losses(output)) == 4


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_saves_and_exits_with_zero(
    tiny_config: str, tmp_path: Path, number: signal.Signals
) -> None:
    output = tmp_path / "run"
    argv = [sys.executable, str(ROOT / "tools/lazyconfig_train_net.py"), "--num-gpus", "2"]
    argv += ["--config-file", tiny_config, f"train.output_dir={output}"]
    argv += ["train.max_iter=2000", "train.log_period=1", "dataloader.train.num_workers=1"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            argv,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        while last_step(output / "metrics.jsonl") < 3 and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(timeout=120) == 0, (tmp_path / "log").read_text()
    step = read_checkpoint(output / "checkpoints/last.pth")["step"]
    assert 3 <= step < 2000
    assert f"stopped after step {step} of 2000" in (tmp_path / "log").read_text()


def test_two_processes_see_what_one_sees(tiny_config: str, tmp_path: Path, run_tiny) -> None:
    """The same global batches and normaliser: the same run, up to the order of summation."""
    options = [*SHORT, "model.dropout=0", "model.norm=False"]
    run_tiny(*options, output="one")
    argv = ["--config-file", tiny_config, f"train.output_dir={tmp_path / 'two'}", *options]
    Job(argv, log=tmp_path / "log", processes=2).succeed()
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 4
    assert len(set(one)) == 4
    assert one == pytest.approx(two, rel=1e-5)


def test_nan_on_one_of_two_ranks_stops_both(tiny_config: str, tmp_path: Path) -> None:
    output = tmp_path / "run"
    argv = ["--config-file", tiny_config, f"train.output_dir={output}", "train.ema_decay=null"]
    bad = ["dataloader.train.nan_at=7", "dataloader.train.nan_rank=1"]
    job = Job([*argv, *bad], log=tmp_path / "log", processes=2)
    assert job.wait() == [1, 1]
    logs = [(output / name).read_text() for name in ("train.log", "train.rank1.log")]
    for text in logs:
        assert "step 7: loss or gradient is not finite; no weight was updated" in text
        assert "rank 1: loss = nan" in text
        assert "rank 0: " not in text  # its loss was fine
    assert [path.name for path in (output / "replay").iterdir()] == ["step_00000007_rank1.pth"]
    assert read_checkpoint(output / "checkpoints/last.pth")["step"] == 5


def test_a_rank_without_targets_does_not_hang(tiny_config: str, tmp_path: Path) -> None:
    argv = ["--config-file", tiny_config, f"train.output_dir={tmp_path / 'run'}", *SHORT]
    Job([*argv, "dataloader.train.empty_ranks=[1]"], log=tmp_path / "log", processes=2).succeed()
    assert len(losses(tmp_path / "run")) == 4


def test_evaluation_only(run_tiny, tiny_config: str, tmp_path: Path, capsys) -> None:
    results = run_tiny()
    last = tmp_path / "run/checkpoints/last.pth"
    argv = ["--config-file", tiny_config, "--num-gpus", "0", "--eval-only"]
    argv.append(f"train.output_dir={tmp_path / 'evaluation'}")
    train_net.main([*argv, f"train.init_checkpoint={last}"])
    record = json.loads((tmp_path / "evaluation/evaluation.json").read_text())
    assert record["results"]["AP"] == pytest.approx(results["AP"])
    assert record["checkpoint"] == str(last)
    assert f"AP {results['AP']:.2f}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"needs train\.init_checkpoint"):
        train_net.main(argv)
    with pytest.raises(SystemExit, match=r"knows the classes \['a', 'b'\], the test data has"):
        train_net.main(
            [*argv, f"train.init_checkpoint={last}", "dataloader.test.dataset.class_names=[a,c]"]
        )
    with pytest.raises(SystemExit, match=r"shape: class_head\.weight"):
        train_net.main([*argv, f"train.init_checkpoint={last}", "model.width=4"])


def test_keys_and_config_are_printed(tiny_config: str, capsys) -> None:
    train_net.main(["--config-file", tiny_config, "--list-keys"])
    assert "train.max_iter = 20\n" in capsys.readouterr().out
    train_net.main(["--config-file", tiny_config, "--print-config", "train.seed=9"])
    assert "seed=9" in capsys.readouterr().out


def test_options_and_changes_may_stand_in_any_order(tiny_config: str, capsys) -> None:
    train_net.main(
        ["train.seed=9", "--config-file", tiny_config, "train.max_iter=7", "--list-keys"]
    )
    out = capsys.readouterr().out
    assert "train.seed = 9\n" in out
    assert "train.max_iter = 7\n" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train.max_itr=3"], "unknown key 'train.max_itr'; nearest: train.max_iter"),
        (["train.max_iter=0"], "train.max_iter: expected a whole number >= 1, got 0"),
    ],
)
def test_wrong_keys_end_before_anything_is_made(
    tiny_config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv, message
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        train_net.main(["--config-file", tiny_config, *argv])
    assert str(caught.value).startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []


def test_a_config_without_sections_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("model = dict(a=1)\n")
    with pytest.raises(SystemExit, match="has no dataloader, optimizer, lr_multiplier, train"):
        train_net.main(["--config-file", str(tmp_path / "a.py")])
