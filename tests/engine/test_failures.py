"""What happens to the other processes when one fails, dies, or takes its time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_processes import Job, _free_port, run_once

from predet.checkpoint import read_checkpoint
from predet.engine import TrainSettings
from predet.engine.failure import is_for_users

ROOT = Path(__file__).resolve().parents[2]
KILLED = "process 1 of 2 died without a word"
RAISED = "process 1 of 2 failed: KeyError: 'the disk of this machine is gone'"


def argv(config: str, output: Path, *more: str) -> list[str]:
    options = ["train.log_period=1", "train.max_iter=12", "train.eval_period=0"]
    return ["--config-file", config, "--resume", f"train.output_dir={output}", *options, *more]


@pytest.mark.parametrize(("how", "news"), [("kill", KILLED), ("raise", RAISED)])
def test_a_process_that_ends_is_named_by_the_other(
    tiny_config: str, tmp_path: Path, how: str, news: str
) -> None:
    """Nobody watches these processes: the one that is left ends by itself, and soon."""
    command = argv(tiny_config, tmp_path / "run")
    job = Job(command, log=tmp_path / "log", processes=2, env={"STANDIN_FAIL": f"1:6:{how}"})
    job.processes[1].join(240)
    start = time.monotonic()
    codes = job.wait()
    assert time.monotonic() - start < 30
    assert codes == [1, -signal.SIGKILL if how == "kill" else 1], job.text()
    assert f"error: this process ends because {news}" in job.text()
    assert news in (tmp_path / "run/train.log").read_text()
    assert ("Traceback" in job.text()) == (how == "raise")  # of rank 1, which is not to blame us
    assert read_checkpoint(tmp_path / "run/checkpoints/last.pth")["step"] == 5
    if how == "kill":
        run_once(command, log=tmp_path / "again.log", processes=2)
        assert "5 steps are done" in (tmp_path / "again.log").read_text()


@pytest.mark.slow
def test_who_is_busy_ends_too(tiny_config: str, tmp_path: Path) -> None:
    """Rank 0 evaluates by itself for minutes while rank 2 is killed."""
    command = argv(tiny_config, tmp_path / "run", "dataloader.train.total_batch_size=3")
    command += ["train.eval_period=4"]
    job = Job(command, log=tmp_path / "log", processes=3, env={"STANDIN_EVALUATION": "300"})
    job.signal_after_step(4, 0, tmp_path / "run/metrics.jsonl")  # signal 0 does nothing
    time.sleep(3)
    start = time.monotonic()
    os.kill(job.processes[2].pid, signal.SIGKILL)
    assert job.wait() == [1, 1, -signal.SIGKILL]
    assert time.monotonic() - start < 60
    assert "process 2 of 3 died without a word" in job.text()


@pytest.mark.slow
@pytest.mark.parametrize("starter", ["launcher", "torchrun"])
@pytest.mark.parametrize(("how", "news"), [("kill", "SIGKILL"), ("raise", RAISED[-35:])])
def test_the_job_ends_within_a_minute(
    tiny_config: str, tmp_path: Path, starter: str, how: str, news: str
) -> None:
    head = [sys.executable]
    tool = [str(ROOT / "tools/lazyconfig_train_net.py")]
    if starter == "torchrun":
        head += ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
        head.append(f"--master-port={_free_port()}")
    else:
        tool += ["--num-gpus", "2"]
    output = tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*head, *tool, *argv(tiny_config, output, "dataloader.train.num_workers=1")],
            env={**environment, "STANDIN_FAIL": f"1:6:{how}"},
            stdout=log,
            stderr=log,
        )
        deadline = time.monotonic() + 200
        while not (output / "checkpoints/last.pth").exists() and time.monotonic() < deadline:
            time.sleep(0.05)  # written after step 5; the failure comes at the next one
        start = time.monotonic()
        assert process.wait(timeout=120) == 1
    assert time.monotonic() - start < 60
    assert news in (tmp_path / "log").read_text()


def test_a_slow_rank_is_waited_for_and_named(tiny_config: str, tmp_path: Path) -> None:
    short = ["train.max_iter=6", "dataloader.test=null"]
    slow = {"STANDIN_DELAY": "0.3", "STANDIN_SLOW_RANK": "1"}
    for name, env in (("even", {}), ("slow", slow)):
        job = argv(tiny_config, tmp_path / name, *short)
        run_once(job, log=tmp_path / f"{name}.log", processes=2, env=env)
    even, uneven = (rows(tmp_path / name) for name in ("even", "slow"))
    assert [row["loss"] for row in even] == [row["loss"] for row in uneven]
    assert {row["slowest_rank"] for row in uneven} == {1}
    # One of two waits nearly all the time, the other never.
    assert all(0.2 < row["wait_share"] < 0.55 for row in uneven[1:]), uneven
    assert "% for rank 1  mem" in (tmp_path / "slow.log").read_text()


def rows(output: Path) -> list[dict]:
    found = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if "loss" in row]


def test_an_evaluation_may_take_longer_than_the_timeout(tiny_config: str, tmp_path: Path) -> None:
    command = argv(tiny_config, tmp_path / "run", "train.max_iter=4", "train.eval_period=2")
    env = {"STANDIN_TIMEOUT": "3", "STANDIN_EVALUATION": "8"}
    run_once(command, log=tmp_path / "log", processes=2, env=env)
    assert json.loads((tmp_path / "run/results.json").read_text())["step"] == 4


def test_data_may_take_longer_than_the_timeout(tiny_config: str, tmp_path: Path) -> None:
    command = argv(tiny_config, tmp_path / "run", "train.max_iter=2", "dataloader.test=null")
    env = {"STANDIN_TIMEOUT": "3", "STANDIN_DELAY": "6", "STANDIN_SLOW_RANK": "1"}
    run_once(command, log=tmp_path / "log", processes=2, env=env)
    assert len(rows(tmp_path / "run")) == 2


WRONG = ("dataloader.test.dataset.class_names=[a,c]", "test data 'tiny' has the classes ['a', 'c']")


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_of_the_user_is_one_line(tiny_config: str, tmp_path: Path, processes: int) -> None:
    output = tmp_path / "run"
    job = Job(argv(tiny_config, output, WRONG[0]), log=tmp_path / "log", processes=processes)
    assert job.wait() == [1] * processes
    errors = [line for line in job.text().splitlines() if line.startswith("error: ")]
    assert set(errors) <= {line for line in errors if WRONG[1] in line}
    assert len(errors) == processes
    assert f"(traceback in {output / 'train.log'})" in job.text()
    assert "Traceback" not in job.text()
    for name in ("train.log", "train.rank1.log")[:processes]:
        assert "Traceback" in (output / name).read_text()


def test_an_error_of_the_user_is_said_once_by_the_launcher(
    tiny_config: str, tmp_path: Path
) -> None:
    tool = [sys.executable, str(ROOT / "tools/lazyconfig_train_net.py"), "--num-gpus", "2"]
    done = subprocess.run(
        [*tool, *argv(tiny_config, tmp_path / "run", WRONG[0])],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1
    assert WRONG[1] in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_fault_of_ours_keeps_its_traceback(tiny_config: str, tmp_path: Path) -> None:
    job = Job(
        argv(tiny_config, tmp_path / "run"), log=tmp_path / "log", env={"STANDIN_FAIL": "0:2:raise"}
    )
    assert job.wait() == [1]
    assert "KeyError: 'the disk of this machine is gone'" in job.text()
    assert "Traceback" in job.text()


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (lambda: TrainSettings(max_iter=0), True),
        (lambda: int("x"), False),  # raised here, and here is not predet
        (lambda: torch.zeros(2).view(3), False),
        (Path("/nowhere/at/all").read_text, True),
        (lambda: np.zeros(2).reshape(3), False),
    ],
)
def test_what_is_said_in_one_line(error, ours: bool) -> None:
    with pytest.raises((ValueError, RuntimeError, OSError)) as caught:
        error()
    assert is_for_users(caught.value) == ours
