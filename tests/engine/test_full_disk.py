"""A disk that is full while a checkpoint is written takes nothing away."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from engine_processes import Job, run_once
from engine_standins import FULL

from predet.checkpoint import files, read_checkpoint, save_checkpoint
from predet.engine.distributed import SharedError

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def raise_no_space(*_args, **_options) -> None:
    raise NO_SPACE


class FullFile:
    """A file on a disk with room for `room` bytes."""

    def __init__(self, file, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data) -> int:
        self.room -= len(memoryview(data).cast("B"))
        if self.room < 0:
            raise NO_SPACE
        return self.file.write(data)

    def __enter__(self) -> FullFile:
        return self

    def __exit__(self, *_error) -> None:
        self.file.close()

    def __getattr__(self, name: str):
        return getattr(self.file, name)


def fill_at_write(patch: pytest.MonkeyPatch, room: int) -> None:
    patch.setattr(files, "open", lambda *a: FullFile(open(*a), room), raising=False)  # noqa: SIM115


def fill_at_sync(patch: pytest.MonkeyPatch, _room: int) -> None:
    patch.setattr(files.os, "fsync", raise_no_space)


@pytest.mark.parametrize(
    ("fill", "room"), [(fill_at_write, 10), (fill_at_write, 3000), (fill_at_sync, 0)]
)
def test_the_checkpoint_before_it_survives(tmp_path: Path, monkeypatch, fill, room: int) -> None:
    import torch

    path = tmp_path / "a.pth"
    save_checkpoint(path, {"model": {"w": torch.zeros(5000)}, "step": 1})
    fill(monkeypatch, room)
    with pytest.raises(OSError, match="No space left on device"):
        save_checkpoint(path, {"model": {"w": torch.ones(5000)}, "step": 2})
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pth"]
    assert read_checkpoint(path)["step"] == 1


@pytest.mark.parametrize("fill", [fill_at_write, fill_at_sync])
def test_the_run_says_what_is_left(run_tiny, tmp_path: Path, monkeypatch, fill) -> None:
    run_tiny("train.max_iter=20", output="whole")
    save, saved = files.write_beside, []

    def last_one_fails(path, state):
        saved.append(state["step"])
        if state["step"] == 10:
            fill(monkeypatch, 3000)
        return save(path, state)

    monkeypatch.setattr("predet.checkpoint.store.write_beside", last_one_fails)
    expected = r"cannot save .*checkpoints: .*No space left.*; that of step 8 is whole"
    with pytest.raises(SharedError, match=expected):
        run_tiny("train.max_iter=20")
    monkeypatch.undo()
    folder = tmp_path / "run/checkpoints"
    assert saved == [5, 8, 10]
    names = {entry.name for entry in folder.iterdir()}
    assert names == {"last.pth", "previous.pth", "best.pth"}
    assert read_checkpoint(folder / "last.pth")["step"] == 8
    run_tiny("train.max_iter=20", resume=True)
    weights = [
        read_checkpoint(tmp_path / name / "checkpoints/last.pth")["model"]
        for name in ("whole", "run")
    ]
    assert all(value.equal(weights[1][name]) for name, value in weights[0].items())


def test_a_best_checkpoint_that_cannot_be_written_stops_the_run(run_tiny, monkeypatch) -> None:
    monkeypatch.setattr("predet.checkpoint.store.save_checkpoint", raise_no_space)
    with pytest.raises(SharedError, match=r"cannot save .*that of step 8 is whole"):
        run_tiny("train.max_iter=20")


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_limit_of_the_system(tiny_config: str, tmp_path: Path, processes: int) -> None:
    """Real refusals of write(): RLIMIT_FSIZE, from the eighth batch on."""
    argv = ["--config-file", tiny_config, "--resume", f"train.output_dir={tmp_path / 'run'}"]
    argv += ["train.eval_period=0", "train.max_iter=12"]
    job = Job(argv, log=tmp_path / "log", processes=processes, env={"STANDIN_FAIL": "0:8:full"})
    assert job.wait() == [1] * processes
    folder = tmp_path / "run/checkpoints"
    assert (folder / "last.pth").stat().st_size > FULL
    assert f"error: cannot save a checkpoint in {folder}: [Errno 27]" in job.text()
    assert "that of step 5 is whole" in job.text()
    assert "Traceback" not in job.text()
    assert [entry.name for entry in folder.iterdir()] == ["last.pth"]
    run_once(argv, log=tmp_path / "again", processes=processes)
    assert "5 steps are done" in (tmp_path / "again").read_text()
    assert read_checkpoint(folder / "last.pth")["step"] == 12
