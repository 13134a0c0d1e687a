"""Which side `predet.d2` takes, and what it says about it. Each case has a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPORT = """
import json, logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(message)s")
sys.path.insert(0, {folder!r})
{before}
import predet.d2
import predet.d2 as again
print(json.dumps([predet.d2.SIDE, predet.d2.SIDE_REASON, predet.d2.Boxes.__module__]))
"""
ABSENT = """
import importlib.abc
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "detectron2":
            raise ModuleNotFoundError("No module named 'detectron2'", name="detectron2")
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: (
    None if name == "detectron2" else found(name, package)
)
sys.meta_path.insert(0, Hide())
"""


def choose(folder: Path, forced: str | None, before: str = "") -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PREDET_D2"}
    if forced is not None:
        environment["PREDET_D2"] = forced
    script = REPORT.format(folder=str(folder), before=before)
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def chosen(done: subprocess.CompletedProcess) -> list[str]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder with a Detectron2 that cannot be imported."""
    package = tmp_path / "detectron2"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "config.py").write_text(
        "raise OSError('libtorch_of_yesterday.so: undefined symbol')"
    )
    return tmp_path


def test_embedded_can_be_forced(tmp_path, broken) -> None:
    done = choose(broken, "embedded")
    assert chosen(done) == ["embedded", "PREDET_D2 says so", "predet.d2.embedded.boxes"]
    assert "WARNING" not in done.stderr
    line = "INFO the Detectron2 interface is embedded: PREDET_D2 says so"
    assert done.stderr.count(line) == 1


@pytest.mark.parametrize("forced", [None, ""])
def test_embedded_is_the_default_where_there_is_no_detectron2(tmp_path, forced) -> None:
    done = choose(tmp_path, forced, ABSENT)
    assert chosen(done)[:2] == ["embedded", "Detectron2 is not installed"]
    assert "WARNING" not in done.stderr


def test_an_installed_detectron2_is_taken(tmp_path, absent_sides) -> None:
    if absent_sides:
        pytest.skip(f"a side of the Detectron2 contract was not tested: {absent_sides}")
    for forced, reason in ((None, "it is installed"), ("detectron2", "PREDET_D2 says so")):
        side = chosen(choose(tmp_path, forced))
        assert side == ["detectron2", reason, "detectron2.structures.boxes"]


def test_a_broken_detectron2_is_reported_and_not_taken(broken) -> None:
    done = choose(broken, None)
    side, reason, module = chosen(done)
    assert (side, module) == ("embedded", "predet.d2.embedded.boxes")
    assert "libtorch_of_yesterday.so" in reason
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 1
    assert "broken" in warnings[0]
    assert "OSError: libtorch_of_yesterday.so: undefined symbol" in warnings[0]


def test_a_broken_detectron2_cannot_be_forced(broken) -> None:
    done = choose(broken, "detectron2")
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: PREDET_D2=detectron2, but")
    assert "libtorch_of_yesterday.so" in message


def test_an_absent_detectron2_cannot_be_forced(tmp_path) -> None:
    done = choose(tmp_path, "detectron2", ABSENT)
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert message == "ImportError: PREDET_D2=detectron2, but Detectron2 is not installed"


def test_a_folder_of_that_name_is_not_a_detectron2(tmp_path) -> None:
    (tmp_path / "detectron2" / "configs").mkdir(parents=True)
    before = "import site; sys.path[:] = [p for p in sys.path if 'detectron2' not in p]"
    done = choose(tmp_path, None, before)
    assert chosen(done)[:2] == ["embedded", "Detectron2 is not installed"]
    assert "WARNING" not in done.stderr


def test_an_unknown_side_is_refused(tmp_path) -> None:
    done = choose(tmp_path, "detectron")
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ValueError: PREDET_D2 must be one of detectron2, embedded or unset")
    assert "'detectron'" in message
