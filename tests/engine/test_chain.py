"""Chains of stages: what has finished is not run again, what was stopped is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from predet.engine.chain import Stage, StageFailed, run_chain

APPEND = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.open('a').write(sys.argv[2])"


def stage(name: str, folder: Path, script: str = APPEND, text: str = "x") -> Stage:
    product = folder / f"{name}.txt"
    return Stage(name, (sys.executable, "-c", script, str(product), text), product)


def test_finished_stages_are_not_run_again(tmp_path: Path) -> None:
    stages = [stage("one", tmp_path), stage("two", tmp_path)]
    first = run_chain(stages, tmp_path)
    again = run_chain(stages, tmp_path)
    assert [record.name for record in again] == ["one", "two"]
    assert again == first
    assert (tmp_path / "one.txt").read_text() == (tmp_path / "two.txt").read_text() == "x"


def test_failed_stage_is_run_again_and_earlier_ones_are_not(tmp_path: Path) -> None:
    fails_once = (
        "import pathlib, sys; p = pathlib.Path(sys.argv[1]); tried = p.with_suffix('.tried');"
        "done = tried.exists(); tried.touch(); p.write_text('made') if done else sys.exit(3)"
    )
    stages = [stage("one", tmp_path), stage("two", tmp_path, fails_once)]
    with pytest.raises(StageFailed, match=r"'two' did not finish .exit status 3"):
        run_chain(stages, tmp_path)
    run_chain(stages, tmp_path)
    assert (tmp_path / "one.txt").read_text() == "x"
    assert (tmp_path / "two.txt").read_text() == "made"


def test_stage_that_exits_without_its_product_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="was not made"):
        run_chain([stage("one", tmp_path, "pass")], tmp_path)
    assert not json.loads((tmp_path / "chain.json").read_text())["one"]["finished"]


def test_another_command_under_the_same_name_is_refused(tmp_path: Path) -> None:
    run_chain([stage("one", tmp_path)], tmp_path)
    with pytest.raises(ValueError, match="another command"):
        run_chain([stage("one", tmp_path, text="y")], tmp_path)
    assert (tmp_path / "one.txt").read_text() == "x"
