"""Runs the tests of the native operators on a build with address and undefined-behaviour checks.

    make sanitize

The extension is built once more, without CUDA, into build/sanitized, and takes the place of the
usual one in a process of its own. The checks see every read and write of csrc/, also of tensors,
for torch's memory comes from the same allocator. Leaks are not looked for: Python keeps much to its
end. Arguments are passed on to pytest, in place of the usual tests.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "sanitized"
TESTS = [
    "tests/ops/test_hostile_bindings.py",
    "tests/ops/test_dropout.py",
    "tests/ops/test_ms_deform_attn_native.py",
    "tests/ops/test_matching_native.py",
    "tests/ops/test_selective_search.py",
]
# What needs another compiler run, other processes, or minutes and finds nothing of the kind.
WITHOUT = (
    "not slow and not compiles and not data_parallel and not fork and not opcheck and not memory"
)
RUNS_SANITIZED = "PREDET_RUNS_SANITIZED"


def build() -> None:
    command = [sys.executable, "setup.py", "-q", "build_ext"]
    command += ["--build-lib", str(FOLDER), "--build-temp", str(FOLDER / "objects")]
    environment = {**os.environ, "PREDET_SANITIZE": "1", "PREDET_CUDA": "0"}
    environment["PREDET_REQUIRE_NATIVE"] = "1"
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def runtime(name: str) -> str:
    """Path of a library that comes with the compiler."""
    command = [os.environ.get("CXX", "g++"), f"-print-file-name={name}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(answer).is_file():
        sys.exit(f"the compiler has no {name}: {' '.join(command)} answers {answer!r}")
    return answer


def run_sanitized(arguments: list[str]) -> int:
    # libstdc++ comes early too: exceptions are intercepted, and Python itself does not load it.
    environment = {
        **os.environ,
        RUNS_SANITIZED: "1",
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, __file__, *arguments], cwd=ROOT, env=environment, check=False
    ).returncode


def load_extension() -> None:
    """Let `predet._C` be the build with checks."""
    import predet

    path = FOLDER / "predet" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    spec = importlib.util.spec_from_file_location("predet._C", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["predet._C"] = predet._C = module


def main() -> int:
    arguments = sys.argv[1:]
    if os.environ.get(RUNS_SANITIZED) != "1":
        build()
        return run_sanitized(arguments)
    import pytest

    load_extension()
    own = arguments or [*(str(ROOT / test) for test in TESTS), "-k", WITHOUT]
    return pytest.main(
        ["-q", "-x", "--capture=sys", "-p", "no:cacheprovider", "-m", "not slow", *own]
    )


if __name__ == "__main__":
    sys.exit(main())
