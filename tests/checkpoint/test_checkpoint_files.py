"""Files: plain data only, whole or not at all, and never a line of somebody's code."""

from __future__ import annotations

import argparse
import errno
import os
import pickle
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import safetensors.torch
import torch

from predet.checkpoint import (
    Checkpoints,
    DamagedCheckpointError,
    read_checkpoint,
    save_checkpoint,
)

STATE = {
    "model": {"weight": torch.arange(6.0).reshape(2, 3), "flag": torch.tensor(True)},
    "step": 3,
    "lr": 1e-4,
    "name": "x",
    "none": None,
    "betas": [0.9, 0.999],
    "groups": {0: {"params": [0, 1]}},
}


class RunsCode:
    """Unpickling this creates a file: what an attacker would do worse."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_plain_data_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new/folder/a.pth"
    save_checkpoint(path, {**STATE, "tuple": (1, 2)})
    state = read_checkpoint(path)
    assert torch.equal(state["model"].pop("weight"), STATE["model"]["weight"])
    assert state["model"].pop("flag").dtype == torch.bool
    expected = {k: v for k, v in STATE.items() if k != "model"}
    assert {k: v for k, v in state.items() if k != "model"} == {**expected, "tuple": [1, 2]}
    assert os.listdir(path.parent) == ["a.pth"]


def test_a_view_is_saved_without_its_storage(tmp_path: Path) -> None:
    big = torch.zeros(1_000_000)
    save_checkpoint(tmp_path / "a.pth", {"x": big[:3], "y": torch.nn.Parameter(torch.ones(2))})
    assert (tmp_path / "a.pth").stat().st_size < 10_000
    state = read_checkpoint(tmp_path / "a.pth")
    assert torch.equal(state["x"], torch.zeros(3))
    assert not state["y"].requires_grad


@pytest.mark.parametrize(
    "value", [np.float64(1.0), np.zeros(2), Path("x"), {1.5: 0}, lambda: 0, {"a": [object()]}]
)
def test_what_could_not_be_read_safely_is_not_written(tmp_path: Path, value) -> None:
    save_checkpoint(tmp_path / "a.pth", {"step": 1})
    with pytest.raises(TypeError, match=r"state\['bad'\]"):
        save_checkpoint(tmp_path / "a.pth", {"bad": value})
    assert read_checkpoint(tmp_path / "a.pth") == {"step": 1}
    assert os.listdir(tmp_path) == ["a.pth"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pth"
    save_checkpoint(path, {"step": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"step": 2})
    assert read_checkpoint(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["a.pth"]


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, -1])
def test_truncated_files_are_named(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "cut.pth"
    save_checkpoint(path, STATE)
    whole = path.read_bytes()
    length = int(len(whole) * keep) if isinstance(keep, float) else keep
    path.write_bytes(whole[:length])
    with pytest.raises(DamagedCheckpointError, match=r"cut\.pth .*(truncated|damaged)"):
        read_checkpoint(path)


def test_altered_bytes_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "bad.pth"
    save_checkpoint(path, {"weight": torch.ones(5000)})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    torch.load(path, weights_only=True)  # torch itself does not notice
    with pytest.raises(DamagedCheckpointError, match=r"bad\.pth is damaged: the checksum"):
        read_checkpoint(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello world")
    with pytest.raises(DamagedCheckpointError, match=r"text\.pth"):
        read_checkpoint(tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(DamagedCheckpointError, match="expected a dict, got list"):
        read_checkpoint(tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"absent\.pth does not exist; .*list\.pth"):
        read_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="is a folder"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_code_is_refused_and_not_run(tmp_path: Path, how: str) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    value = {"model": RunsCode(trace)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(value))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(ValueError, match=r"evil\.pth refused: .*run code.*save the tensors alone"):
        read_checkpoint(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(RunsCode(trace)))
    assert trace.exists()  # the attack works where it is let in


@pytest.mark.parametrize(
    ("value", "name"),
    [(argparse.Namespace(lr=1), "argparse.Namespace"), (np.float64(3), r"numpy\..*scalar")],
)
def test_harmless_objects_are_refused_by_name(tmp_path: Path, value, name: str) -> None:
    torch.save({"args": value}, tmp_path / "old.pth")
    with pytest.raises(ValueError, match=f"the Python object '{name}'"):
        read_checkpoint(tmp_path / "old.pth")


@pytest.mark.parametrize("new_format", [True, False])
def test_arguments_are_read_on_request_and_hide_nothing(tmp_path: Path, new_format: bool) -> None:
    path, trace = tmp_path / "old.pth", tmp_path / "trace"

    def save(args: argparse.Namespace) -> None:
        state = {"model": {"x": torch.ones(2)}, "epoch": 3, "args": args}
        torch.save(state, path, _use_new_zipfile_serialization=new_format)

    save(argparse.Namespace(lr=1e-4, dataset="coco", betas=(0.9, 0.999), inner=None))
    state = read_checkpoint(path, with_arguments=True)
    assert torch.equal(state["model"]["x"], torch.ones(2))
    assert state["args"] == argparse.Namespace(
        lr=1e-4, dataset="coco", betas=(0.9, 0.999), inner=None
    )
    with pytest.raises(ValueError, match=r"'argparse\.Namespace'.*tools/convert_checkpoint\.py"):
        read_checkpoint(path)  # only this once
    for value, name in [
        (RunsCode(trace), r"\w+\.mkdir"),
        (Path("x"), r"pathlib\."),
        (np.float64(3), r"numpy\."),
        (argparse.ArgumentParser, r"argparse\.ArgumentParser"),
    ]:
        save(argparse.Namespace(lr=1e-4, inner=argparse.Namespace(value=value)))
        with pytest.raises(ValueError, match=rf"refused: it holds the Python object '{name}"):
            read_checkpoint(path, with_arguments=True)
    assert not trace.exists()


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"w": torch.ones(3)}, path, metadata={"class_names": '["a", "b"]'})
    state = read_checkpoint(path)
    assert torch.equal(state["model"]["w"], torch.ones(3))
    assert state["provenance"]["class_names"] == '["a", "b"]'
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DamagedCheckpointError, match=r"a\.safetensors is truncated"):
        read_checkpoint(path)


def test_last_and_the_one_before(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    assert store.load() is None
    assert not store.exist()
    for step in (1, 2, 3):
        store.save({"step": step})
    assert store.load() == ({"step": 3}, store.last)
    assert read_checkpoint(store.previous) == {"step": 2}
    store.save_best({"step": 2})
    assert sorted(os.listdir(store.folder)) == ["best.pth", "last.pth", "previous.pth"]


@pytest.mark.parametrize("moment", ["writing", "first rename", "second rename"])
def test_a_kill_at_any_moment_leaves_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    store = Checkpoints(tmp_path)
    store.save({"step": 1})
    store.save({"step": 2})

    class Killed(BaseException):
        pass

    replace, calls = os.replace, []

    def dying(source, target):
        calls.append(target)
        if len(calls) == (1 if moment == "first rename" else 2):
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        if moment == "writing":  # as SIGKILL would: no clean-up runs
            patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
            patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(Killed()))
        else:
            patch.setattr(os, "replace", dying)
        with pytest.raises(Killed):
            store.save({"step": 3})
    found = store.load()
    assert found is not None
    assert found[0]["step"] == 2
    store.save({"step": 4})
    assert store.load() == ({"step": 4}, store.last)
    assert not [name for name in os.listdir(store.folder) if "partial" in name]


def test_of_a_run_that_is_over_the_last_is_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_best(STATE)
    checkpoints.keep_last()  # nothing that could stand for the others
    assert checkpoints.best.exists()
    checkpoints.save(STATE)
    checkpoints.save({**STATE, "step": 4})
    checkpoints.keep_last()
    assert [path.name for path in checkpoints.folder.iterdir()] == ["last.pth"]
    assert read_checkpoint(checkpoints.last)["step"] == 4


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        PermissionError(errno.EACCES, "Permission denied"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_a_checkpoint_that_the_machine_cannot_read_now_is_left_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    store = Checkpoints(tmp_path)
    for step in (1, 2):
        store.save({"step": step})
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", Mock(side_effect=error))
        with pytest.raises(type(error), match=str(error)[-20:]):
            store.load()
    assert store.load() == ({"step": 2}, store.last)


def test_a_damaged_last_checkpoint_is_set_aside(tmp_path: Path, caplog) -> None:
    store = Checkpoints(tmp_path)
    store.save({"step": 1})
    store.save({"step": 2})
    store.last.write_bytes(store.last.read_bytes()[:-20])
    assert store.load() == ({"step": 1}, store.previous)
    assert "last.pth is truncated or damaged" in caplog.text
    assert "kept as last.damaged.pth" in caplog.text
    store.save({"step": 2})  # must not push the damaged one over the whole one
    assert read_checkpoint(store.last) == {"step": 2}
    assert read_checkpoint(store.previous) == {"step": 1}


def test_nothing_whole_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    store.save({"step": 1})
    store.last.write_bytes(b"")
    with pytest.raises(ValueError, match="no whole checkpoint is left"):
        store.load()


def test_a_refused_last_checkpoint_is_no_damage(tmp_path: Path) -> None:
    """A file with foreign objects is an error to look at, not something to step over."""
    store = Checkpoints(tmp_path)
    store.save({"step": 1})
    torch.save({"args": argparse.Namespace()}, store.last)
    with pytest.raises(ValueError, match="refused"):
        store.load()
    assert store.last.exists()
