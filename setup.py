"""Build of predet. Metadata is in pyproject.toml; here is what it cannot say.

Two folders at the root of the repository are sub-packages of predet, as Detectron2 does with its
projects. csrc/ becomes the extension module predet._C, which needs a C++17 compiler and nothing of
torch; without a compiler predet is installed without it and runs its PyTorch references.

Environment:
    PREDET_REQUIRE_NATIVE=1   a failing build of csrc/ fails the install
    PREDET_CUDA=0|1           leave out, or insist on, the CUDA kernels (default: where nvcc is)
    PREDET_SANITIZE=1         address and undefined-behaviour sanitisers, for the tests
    CC, CXX, NVCC             compilers to use instead of the usual ones
    MAX_JOBS                  how many files to compile at a time (default: number of processors)
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
MAPPED = {"predet.projects": "projects", "predet.configs": "configs"}

# A kernel is compiled once for each instruction set, and chosen at run time.
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
INSTRUCTION_SETS = {"avx2": AVX2, "avx512": [*AVX2, *AVX512]}

# Compilers may turn a * b + c into one rounding here and two there. On the CPU they must not, or
# results would depend on the processor and even on what was inlined where; kernels say where they
# want it. On CUDA this holds for those whose results must be the CPU's.
SAME_AS_CPU = ("csrc/hungarian/", "csrc/selective_search/")

# The newest one also as PTX, which later devices compile for themselves.
CUDA_ARCHITECTURES = (80, 90)

SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
SANITIZERS += ["-fno-omit-frame-pointer"]


def packages() -> list[str]:
    found = find_packages(str(ROOT), include=["predet", "predet.*"])
    for package, folder in MAPPED.items():
        found += [package, *(f"{package}.{sub}" for sub in find_packages(str(ROOT / folder)))]
    return found


def sources(pattern: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(f"csrc/**/{pattern}"))


class BuildNative(build_ext):
    """Compiles each file of csrc/ with the flags it needs, several at a time."""

    def run(self) -> None:
        self.jobs = max_jobs()
        try:
            super().run()
        except Exception as error:  # compilers fail in many ways: all of them end here
            if "1" in (os.environ.get("PREDET_REQUIRE_NATIVE"), os.environ.get("PREDET_CUDA")):
                raise
            self.extensions = []  # nothing to copy for an editable install
            warn(
                f"predet is installed WITHOUT its native operators: {error}",
                "Its PyTorch references are used instead, which are many times slower. Install a "
                "C++17 compiler and repeat the install; PREDET_REQUIRE_NATIVE=1 makes this an "
                "error.",
            )

    def build_extension(self, ext: Extension) -> None:
        nvcc = find_nvcc()
        if nvcc and os.environ.get("PREDET_CUDA") != "1":
            try:
                self.compile_and_link(ext, nvcc)
                return
            except Exception as error:
                warn(f"predet is built without its CUDA kernels: {error}", f"(nvcc: {nvcc})")
                nvcc = None
        self.compile_and_link(ext, nvcc)

    def compile_and_link(self, ext: Extension, nvcc: str | None) -> None:
        import pybind11

        unix = self.compiler.compiler_type == "unix"
        kernels = self.supported_instruction_sets() if unix else []
        macros = [*ext.define_macros, *((f"PREDET_WITH_{k.upper()}", None) for k in kernels)]
        flags = unix_flags() if unix else ["/std:c++17", "/EHsc", "/O2"]
        include = [*ext.include_dirs, pybind11.get_include()]
        architectures = cuda_architectures(nvcc) if nvcc else []
        if nvcc:
            text = ";".join(map(str, architectures)) + "+PTX"
            macros += [("PREDET_WITH_CUDA", None), ("PREDET_CUDA_ARCHITECTURES", f'"{text}"')]
        cuda_files = sources("*.cu") if nvcc else []
        with ThreadPoolExecutor(self.jobs) as pool:
            jobs = [pool.submit(self.compile_cuda, nvcc, architectures, f) for f in cuda_files]
            for source in cpp_sources(kernels):
                all_flags = flags + flags_of_file(source)
                jobs.append(pool.submit(self.compile_cpp, source, macros, include, all_flags))
            objects = [job.result() for job in jobs]
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            libraries=["cudart_static", "dl", "rt"] if nvcc else [],
            library_dirs=cuda_folders(nvcc) if nvcc else [],
            extra_postargs=link_flags() if unix else [],
            build_temp=self.build_temp,
            target_lang="c++",
        )

    def supported_instruction_sets(self) -> list[str]:
        if platform.machine().lower() not in ("x86_64", "amd64"):
            return []
        return [name for name, flags in INSTRUCTION_SETS.items() if self.accepts(flags)]

    def accepts(self, flags: list[str]) -> bool:
        """Whether the compiler knows these flags and compiles for x86-64 with them."""
        program = (
            "#if !defined(__x86_64__)\n#error not x86-64\n#endif\n#include <immintrin.h>\n"
            'int supported() { return __builtin_cpu_supports("avx2"); }\n'
        )
        compiler = getattr(self.compiler, "compiler_so_cxx", None) or self.compiler.compiler_so
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder, "probe.cpp")
            probe.write_text(program)
            command = [*compiler, *flags, "-c", str(probe), "-o", f"{probe}.o"]
            return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def compile_cpp(
        self,
        source: str,
        macros: list[tuple[str, str | None]],
        include: list[str],
        flags: list[str],
    ) -> str:
        folder = self.folder_for(self.compiler.compiler_so, macros, include, flags)
        (target,) = self.compiler.object_filenames([source], output_dir=folder)
        if not up_to_date(target, source):
            self.compiler.compile(
                [source],
                output_dir=folder,
                macros=macros,
                include_dirs=include,
                extra_postargs=flags,
            )
        return target

    def compile_cuda(self, nvcc: str, architectures: list[int], source: str) -> str:
        flags = ["-std=c++17", "-O3", "--threads", "2", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
        flags += flags_of_cuda_file(source)
        for number in architectures:
            newest = number == architectures[-1]
            code = f"[sm_{number},compute_{number}]" if newest else f"sm_{number}"
            flags += ["-gencode", f"arch=compute_{number},code={code}"]
        target = str(Path(self.folder_for(nvcc, flags), source).with_suffix(".cu.o"))
        if not up_to_date(target, source):
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            run([nvcc, *flags, "-c", source, "-o", target])
        return target

    def folder_for(self, *command: object) -> str:
        """Objects of different commands must not be taken for one another."""
        return str(Path(self.build_temp, hashlib.sha256(repr(command).encode()).hexdigest()[:12]))


def max_jobs() -> int:
    wish = os.environ.get("MAX_JOBS") or "0"
    if not wish.isdecimal():
        raise ValueError(f"MAX_JOBS must be a number of files, or empty, got {wish!r}")
    return int(wish) or os.cpu_count() or 1


def warn(*lines: str) -> None:
    for line in lines:
        sys.stderr.write(f"predet: warning: {line}\n")


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    sys.stdout.write(" ".join(command) + f"\n{done.stdout}{done.stderr}")
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed on {command[-3]}:\n{done.stderr[-2000:]}")


def up_to_date(target: str, source: str) -> bool:
    """Whether an object is newer than all that it may have been made from."""
    inputs = [source, "setup.py", *sources("*.h")]
    return Path(target).is_file() and all(
        Path(target).stat().st_mtime > Path(path).stat().st_mtime for path in inputs
    )


def unix_flags() -> list[str]:
    flags = ["-std=c++17", "-O3", "-g0", "-pthread", "-fvisibility=hidden", "-ffp-contract=off"]
    flags += [
        "-fno-math-errno",
        "-fno-trapping-math",
        "-Wall",
        "-Wextra",
        "-Wno-maybe-uninitialized",
    ]
    return [*flags, "-O1", "-g", *SANITIZERS] if sanitizing() else flags


def link_flags() -> list[str]:
    return ["-pthread", *(SANITIZERS if sanitizing() else [])]


def sanitizing() -> bool:
    return os.environ.get("PREDET_SANITIZE") == "1"


def flags_of_file(source: str) -> list[str]:
    return next((f for name, f in INSTRUCTION_SETS.items() if source.endswith(f"_{name}.cpp")), [])


def flags_of_cuda_file(source: str) -> list[str]:
    return ["--fmad=false"] if source.startswith(SAME_AS_CPU) else []


def cpp_sources(instruction_sets: list[str]) -> list[str]:
    """The .cpp files, without those for instruction sets that cannot be compiled."""
    missing = tuple(f"_{name}.cpp" for name in INSTRUCTION_SETS if name not in instruction_sets)
    return [source for source in sources("*.cpp") if not source.endswith(missing)]


def find_nvcc() -> str | None:
    wish = os.environ.get("PREDET_CUDA", "")
    if wish not in ("", "0", "1"):
        raise ValueError(f"PREDET_CUDA must be 0 or 1, got {wish!r}")
    if wish == "0":
        return None
    candidates = [os.environ.get("NVCC"), shutil.which("nvcc")]
    for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        candidates.append(shutil.which("nvcc", path=str(Path(home, "bin"))) if home else None)
    found = next((candidate for candidate in candidates if candidate), None)
    if found is None and wish == "1":
        raise FileNotFoundError("PREDET_CUDA=1, but nvcc was not found (set NVCC or CUDA_HOME)")
    return found


def cuda_architectures(nvcc: str) -> list[int]:
    """Those of CUDA_ARCHITECTURES that this nvcc knows."""
    answer = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    known = [number for number in CUDA_ARCHITECTURES if f"compute_{number}\n" in answer.stdout]
    if not known:
        raise RuntimeError(f"{nvcc} knows none of {CUDA_ARCHITECTURES}: {answer.stdout}")
    return known


def cuda_folders(nvcc: str) -> list[str]:
    """Where the CUDA libraries are. nvcc may be a wrapper script, so it is asked."""
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, "probe.cu")
        probe.touch()
        command = [nvcc, "--dryrun", "-c", str(probe), "-o", f"{probe}.o"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    line = re.search(r"^#\$ LIBRARIES=(.*)$", answer.stderr, re.MULTILINE)
    if line is None:
        raise RuntimeError(f"nvcc does not tell its library folders: {' '.join(command)}")
    return [path for path in re.findall(r'-L([^"\s]+)', line.group(1)) if "stubs" not in path]


native = Extension("predet._C", sources=sources("*.cpp"), language="c++")

setup(
    packages=packages(),
    package_dir=MAPPED,
    ext_modules=[native],
    cmdclass={"build_ext": BuildNative},
)
