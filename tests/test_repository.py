"""The shape of the house: who may import whom, what every config and project carries."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Each room of the library and the rooms below it that it may use. `d2` is open to all.
ALLOWED = {
    "d2": set(),
    "ops": set(),
    "layers": {"ops"},
    "modeling": {"ops", "layers"},
    "pretext": {"ops", "layers", "modeling"},
    "data": {"ops"},
    "checkpoint": set(),
    "evaluation": {"ops", "data"},
    "visualize": {"ops", "data"},
    "engine": {"ops", "data", "checkpoint", "evaluation", "visualize", "configs"},  # to find them
}
PROJECT_MAY_USE = {
    "align_det": set(),
    "detr": set(),
    "deformable_detr": set(),
    "h_deformable_detr": {"deformable_detr"},
    "self_training": set(),
    "detreg": set(),
    "up_detr": set(),
    "image_domain": set(),
    "torchvision_detectors": set(),
}
PROJECT_ROOMS = {"ops", "layers", "modeling", "pretext", "data", "checkpoint"}


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    """Absolute dotted names that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def rooms_used(path: Path) -> set[str]:
    found = set()
    for name in imported_modules(path):
        parts = name.split(".")
        if parts[0] == "predet" and len(parts) > 1:
            found.add(parts[1])
    return found - {"version", "__version__", "d2"}


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


@pytest.mark.parametrize("room", ALLOWED)
def test_library_rooms_import_only_downwards(room: str) -> None:
    for path in python_files(f"predet/{room}"):
        used = rooms_used(path) - {room}
        assert used <= ALLOWED[room], f"{path.relative_to(ROOT)} imports {used - ALLOWED[room]}"


def test_every_room_is_listed() -> None:
    rooms = {path.parent.name for path in (ROOT / "predet").glob("*/__init__.py")}
    assert rooms == set(ALLOWED)


def test_projects_import_only_what_they_may() -> None:
    folders = {path.parent.name for path in (ROOT / "projects").glob("*/__init__.py")}
    assert folders == set(PROJECT_MAY_USE)
    for project, siblings in PROJECT_MAY_USE.items():
        for path in python_files(f"projects/{project}"):
            used = rooms_used(path) - {"projects"}
            assert used <= PROJECT_ROOMS, f"{path.relative_to(ROOT)} imports {used - PROJECT_ROOMS}"
            used_projects = {
                name.split(".")[2]
                for name in imported_modules(path)
                if name.startswith("predet.projects.")
            }
            assert used_projects - {project} <= siblings, path


def test_detectron2_is_known_in_one_place_only() -> None:
    for folder in ("predet", "projects", "configs", "tools"):
        for path in python_files(folder):
            if path.is_relative_to(ROOT / "predet/d2"):
                continue
            heads = {name.split(".")[0] for name in imported_modules(path)}
            assert "detectron2" not in heads, path


def test_every_config_project_and_tool_says_what_it_is() -> None:
    paths = [*python_files("configs"), *python_files("tools"), *python_files("benchmarks")]
    for path in paths:
        if path.name != "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"
    for project in PROJECT_MAY_USE:
        assert (ROOT / "projects" / project / "README.md").is_file(), project


def test_every_command_can_be_run_by_its_name() -> None:
    """The pages write `tools/x.py`, not `python tools/x.py`."""
    for path in [*python_files("tools"), *python_files("benchmarks")]:
        text = path.read_text()
        runs = '__name__ == "__main__"' in text
        assert runs == text.startswith("#!/usr/bin/env python"), path
        assert runs == os.access(path, os.X_OK), f"{path}: executable or not?"


def test_runnable_configs_show_their_command() -> None:
    for path in python_files("configs"):
        if path.name == "__init__.py" or "common" in path.parts:
            continue
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        relative = path.relative_to(ROOT).as_posix()
        assert relative in text, f"the docstring of {relative} does not show its command"


def test_each_op_has_a_reference() -> None:
    for name, op in (("ms_deform_attn", "ms_deform_attn"), ("dropout", "dropout")):
        source = (ROOT / f"predet/ops/{name}.py").read_text()
        assert f"def {op}(" in source
        assert f"def {op}_reference(" in source


def test_readme_tree_matches_the_disk() -> None:
    block = re.search(r"<!-- tree -->\s*```\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert block, "README.md holds no tree"
    parents: list[str] = []
    for line in block.group(1).splitlines():
        name = line.split("#")[0].rstrip()
        if not name:
            continue
        depth = (len(name) - len(name.lstrip())) // 2
        parents = [*parents[:depth], name.strip().rstrip("/")]
        assert (ROOT / "/".join(parents)).exists(), f"README names {'/'.join(parents)}"


def test_files_stay_small_and_name_no_machine() -> None:
    private = re.compile(r"/work/|/root/|/home/(?!pi/)|https?://[^\s)\"']*(pypi|npmjs|debian)\.")
    for path in tracked_files():
        assert path.stat().st_size < 500_000, f"{path} is larger than 500 kB"
        if path.suffix in {".py", ".md", ".toml", ".cpp", ".cu", ".h", ".yml", ""}:
            found = private.search(path.read_text(errors="replace"))
            if path != Path(__file__).resolve():
                assert not found, f"{path} names {found.group(0)}"


def test_tests_named_in_the_parity_page_exist() -> None:
    """`file::test`, files by their names alone."""
    page = (ROOT / "docs/parity.md").read_text()
    named = set(re.findall(r"(test_\w+\.py)::(test_\w+)", page))
    defined = {
        (path.name, node.name)
        for path in python_files("tests")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert len(named) > 40
    assert not named - defined
