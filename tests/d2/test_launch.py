"""Jobs of several processes on the CPU: that they talk, that they end, that none is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from predet.d2.embedded.launch import launch

SCRIPT = Path(__file__).with_name("launch_jobs.py")
SECONDS = 300  # for a job that takes a few when the machine is not busy


def environment(**more: str) -> dict[str, str]:
    """No GPUs, no torchrun, one thread."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return {**kept, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **more}


def command(side: str, job: str, num_gpus: int, out: Path) -> list[str]:
    return [sys.executable, str(SCRIPT), side, job, str(num_gpus), str(out)]


def run(side: str, job: str, out: Path, num_gpus: int = 2) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(side, job, num_gpus, out),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def seen(out: Path) -> list[dict]:
    """What the ranks left, in their order."""
    return [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]


def wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def check_collectives(ranks: list[dict]) -> None:
    assert [one["world_size"] for one in ranks] == [2, 2]
    assert [one["local"] for one in ranks] == [[0, 2], [1, 2]]
    assert [one["main"] for one in ranks] == [True, False]
    assert {one["backend"] for one in ranks} == {"gloo"}
    everything = [{"rank": 0, "long": ""}, {"rank": 1, "long": "x" * 1000}]
    assert [one["all_gather"] for one in ranks] == [everything] * 2
    assert [one["gather"] for one in ranks] == [[[0], [1]], []]
    assert [one["gather_on_1"] for one in ranks] == [[], [0, 1]]
    assert ranks[0]["seed"] == ranks[1]["seed"]
    assert ranks[0]["mean"] == {"a": 5.0, "b": 1.5}
    assert ranks[0]["sum"] == {"a": 10.0, "b": 3.0}
    assert ranks[0]["pid"] != ranks[1]["pid"]


def test_two_processes_talk(side, tmp_path) -> None:
    done = run(side, "collectives", tmp_path)
    assert done.returncode == 0, done.stderr
    check_collectives(seen(tmp_path))


def test_a_failing_process_fails_the_job_and_shows_why(side, tmp_path) -> None:
    done = run(side, "failing", tmp_path)
    assert done.returncode == 1
    assert "KeyError: 'the reason why rank 1 failed'" in done.stderr
    assert "launch_jobs.py" in done.stderr
    assert not any(is_running(one["pid"]) for one in seen(tmp_path))
    if side == "embedded":
        assert "RuntimeError: process 1 of 2 failed:" in done.stderr


@pytest.mark.slow
def test_a_killed_process_ends_the_others(tmp_path) -> None:
    done = run("embedded", "dying", tmp_path)
    assert done.returncode == 1
    assert "process 1 of 2 ended with signal SIGKILL" in done.stderr
    assert not any(is_running(one["pid"]) for one in seen(tmp_path))


@pytest.mark.slow
def test_processes_may_end_by_exit(tmp_path) -> None:
    done = run("embedded", "exiting", tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(seen(tmp_path)) == 2


@pytest.mark.parametrize("num_gpus", [0, 1])
def test_one_process_is_this_one(tmp_path, num_gpus) -> None:
    process = subprocess.Popen(command("embedded", "alone", num_gpus, tmp_path), env=environment())
    assert process.wait(SECONDS) == 0
    assert seen(tmp_path) == [{"pid": process.pid, "world_size": 1}]


def test_sigterm_reaches_the_processes_which_may_end_well(tmp_path) -> None:
    process = subprocess.Popen(command("embedded", "waiting", 2, tmp_path), env=environment())
    wait_for(lambda: len(list(tmp_path.glob("*.json"))) == 2, "start of both ranks")
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 0
    assert [one["stopped"] for one in seen(tmp_path)] == [True, True]


@pytest.mark.slow
def test_sigterm_that_nobody_handles_ends_the_job(tmp_path) -> None:
    process = subprocess.Popen(command("embedded", "sleeping", 2, tmp_path), env=environment())
    wait_for(lambda: len(list(tmp_path.glob("*.json"))) == 2, "start of both ranks")
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 128 + signal.SIGTERM
    assert not any(is_running(one["pid"]) for one in seen(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can promise it")
def test_no_process_outlives_a_killed_parent(tmp_path) -> None:
    process = subprocess.Popen(command("embedded", "sleeping", 2, tmp_path), env=environment())
    wait_for(lambda: len(list(tmp_path.glob("*.json"))) == 2, "start of both ranks")
    process.kill()
    process.wait(SECONDS)
    wait_for(lambda: not any(is_running(one["pid"]) for one in seen(tmp_path)), "end of both ranks")


def test_torchrun_starts_the_processes_itself(tmp_path) -> None:
    # the launcher is the embedded one, `comm` that of the side in use: it readies both
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", *command("in_use", "collectives", 1, tmp_path)[1:]),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    check_collectives(seen(tmp_path))


def test_one_process_under_torchrun_needs_no_group(tmp_path) -> None:
    single = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    process = subprocess.Popen(command("embedded", "alone", 4, tmp_path), env=environment(**single))
    assert process.wait(SECONDS) == 0
    assert seen(tmp_path) == [{"pid": process.pid, "world_size": 1}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_gpus_per_machine": -1}, "negative, got -1"),
        ({"num_gpus_per_machine": 1, "num_machines": 2, "machine_rank": 2}, "got 2 of 2"),
        ({"num_gpus_per_machine": 1, "num_machines": 0}, "got 0 of 0"),
        ({"num_gpus_per_machine": 1, "num_machines": 2, "dist_url": "auto"}, "tcp://HOST:PORT"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(arguments, message, monkeypatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match=message):
        launch(print, **arguments)


def test_an_incomplete_environment_is_refused(monkeypatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="MASTER_ADDR and MASTER_PORT is not"):
        launch(print, 1)
