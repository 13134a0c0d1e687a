"""One writer for each folder, and no lock that outlives its holder."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from predet.engine import locks, train_net
from predet.engine.locks import claimed, only_writer

HOLDER = """
import sys
from pathlib import Path
from predet.engine.locks import only_writer
with only_writer(Path(sys.argv[1])):
    print("holds", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Another process that writes to `tmp_path / "run"`, until its input is closed."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_a_second_run_is_refused_while_the_first_one_lives(
    tmp_path: Path, holder: subprocess.Popen
) -> None:
    with (
        pytest.raises(ValueError, match=r"another run is writing to .*run: wait for its end"),
        only_writer(tmp_path / "run", patience=0),
    ):
        pytest.fail("two runs write to one folder")
    with only_writer(tmp_path / "other", patience=0):
        pass
    holder.kill()  # it cannot release anything
    with only_writer(tmp_path / "run"):
        pass


def test_a_run_waits_for_one_that_ends(tmp_path: Path, holder: subprocess.Popen) -> None:
    holder.stdin.close()
    with only_writer(tmp_path / "run"):
        pass


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with only_writer(tmp_path):
        pass
    assert "nothing keeps a second run away: [Errno" in caplog.text


def test_the_training_command_holds_its_folder(
    tmp_path: Path, tiny_config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def train(*_: object, **__: object) -> None:
        with claimed(tmp_path / "run" / ".lock") as lock:
            seen.append(lock)

    monkeypatch.setattr(train_net, "train", train)
    options = [f"train.output_dir={tmp_path / 'run'}", "--num-gpus", "0"]
    train_net.main(["--config-file", tiny_config, *options])
    assert seen == [None]
