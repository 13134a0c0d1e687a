"""The demonstration, as far as it is not the comparison that it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools/demo.py"


def test_scenes_are_drawn_once_for_each_seed(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, compared = [], []

    def run(name: str, *arguments: object) -> None:
        if name == "make_scenes.py":
            drawn.append(arguments[-1])
            file = Path(str(arguments[0]), "annotations", "instances_test.json")
            file.parent.mkdir(parents=True)
            file.touch()
        else:
            compared.extend(str(a) for a in arguments if str(a).startswith("data.train.source="))
            sys.exit()

    monkeypatch.setattr(tool, "run", run)
    for seed in ("0", "1", "1"):
        monkeypatch.setattr(sys, "argv", ["demo.py", "--output", str(tmp_path), "--seed", seed])
        with pytest.raises(SystemExit):
            tool.main()
    assert drawn == ["0", "1"]
    assert compared[0] != compared[1] == compared[2]
