"""What a user installs: sdist -> wheel -> import in another folder, without the repository."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROBE = """
import sys
# The editable install of this environment would lend what the wheel lacks.
sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
import predet, predet.projects.deformable_detr, predet.configs.common, predet.d2
from predet.engine.config import load_config
from predet.ops import extension
for module in (predet, predet.projects.deformable_detr, predet.configs.common):
    assert not module.__file__.startswith({root!r}), module.__file__
assert load_config("configs/tiny/deformable_detr.py", []).model.queries.num_queries == 50
print("native", extension.available("ms_deform_attn"))
"""


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("sdist")
    # From a copy: building writes beside the sources, where another process may be at it too.
    leave = shutil.ignore_patterns(".*", "build", "dist", "output", "datasets", "*.egg-info")
    copy = shutil.copytree(ROOT, target / "copy", ignore=leave)
    run(sys.executable, "-m", "build", "--sdist", "--outdir", target, copy, cwd=target)
    return next(target.glob("predet-*.tar.gz"))


def import_from(wheel: Path, folder: Path) -> str:
    """Unpack a wheel, and import it from there with this environment's dependencies."""
    site = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # -P and PYTHONPATH: the unpacked wheel comes before the editable install, the folder does not.
    return run(sys.executable, "-c", PROBE.format(root=str(ROOT)), cwd=folder, PYTHONPATH=str(site))


def build_wheel(sdist: Path, target: Path, **env: str) -> Path:
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", target, sdist)
    run(*pip, cwd=target, **env)
    return next(target.glob("predet-*.whl"))


@pytest.mark.parametrize(("wish", "jobs"), [("3", 3), ("", os.cpu_count()), ("0", os.cpu_count())])
def test_max_jobs(monkeypatch: pytest.MonkeyPatch, wish: str, jobs: int) -> None:
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    monkeypatch.setenv("MAX_JOBS", wish)
    assert runpy.run_path(str(ROOT / "setup.py"))["max_jobs"]() == jobs


def test_max_jobs_that_is_no_number_ends_the_build(tmp_path: Path) -> None:
    """And is no reason to install without the native operators."""
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "-b", tmp_path, "-t", tmp_path],
        cwd=ROOT,
        env={**os.environ, "MAX_JOBS": "all"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "MAX_JOBS must be a number of files, or empty, got 'all'" in done.stderr


@pytest.mark.slow
def test_sdist_holds_all_sources(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for folder in ("csrc", "predet", "projects", "configs", "tools"):
        for path in (ROOT / folder).rglob("*"):
            relative = path.relative_to(ROOT).as_posix()
            if path.is_file() and path.suffix in {".py", ".h", ".cpp", ".cu", ".cuh", ".md"}:
                assert relative in held, f"the sdist lacks {relative}"


@pytest.mark.slow
def test_wheel_from_sdist_imports_elsewhere(sdist: Path, tmp_path: Path) -> None:
    wheel = build_wheel(sdist, tmp_path)
    assert "native True" in import_from(wheel, tmp_path)


@pytest.mark.slow
def test_wheel_without_a_compiler_falls_back(sdist: Path, tmp_path: Path) -> None:
    broken = {"CC": "no-such-compiler", "CXX": "no-such-compiler"}
    lenient = {"PREDET_REQUIRE_NATIVE": "0", "PREDET_CUDA": ""}  # whatever the caller insists on
    wheel = build_wheel(sdist, tmp_path, **broken, **lenient)
    assert "native False" in import_from(wheel, tmp_path)


@pytest.mark.slow
def test_console_entry_is_the_tool() -> None:
    entry = run(Path(sys.executable).parent / "predet-train", "--help", cwd=ROOT)
    tool = run(sys.executable, "tools/lazyconfig_train_net.py", "--help", cwd=ROOT)
    assert "--config-file" in tool
    assert entry.split() == tool.replace("lazyconfig_train_net.py", "predet-train").split()
