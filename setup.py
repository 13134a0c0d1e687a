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

# A kernel is compiled once for each instruction set and chosen at run time.
INSTRUCTION_SETS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": [
        "-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl",
        "-mprefer-vector-width=512",
    ],
}
INSTRUCTION_SETS = {name: " ".join(flags).split() for name, flags in INSTRUCTION_SETS.items()}
CUDA_ARCHITECTURES = (80, 90)  # and PTX of the last, which later devices compile for themselves


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
        try:
            super().run()
        except Exception as error:  # compilers fail in many ways: each one gets reported below
            if os.environ.get("PREDET_REQUIRE_NATIVE") == "1":
                raise
            self.extensions = []  # nothing to copy for an editable install
            print(
                f"warning: predet is installed WITHOUT its native operators: {error}\n"
                "warning: its PyTorch references are used instead, which are many times slower. "
                "Install a C++17 compiler and repeat the install, or set PREDET_REQUIRE_NATIVE=1 "
                "to make this an error.",
                file=sys.stderr,
            )

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        ext.include_dirs.append(pybind11.get_include())
        unix = self.compiler.compiler_type == "unix"
        macros = list(ext.define_macros)
        flags = self.unix_flags() if unix else ["/std:c++17", "/EHsc", "/O2"]
        kernels = self.supported_instruction_sets() if unix else []
        macros += [(f"PREDET_WITH_{name.upper()}", None) for name in kernels]
        nvcc = find_nvcc()
        if nvcc:
            macros.append(("PREDET_WITH_CUDA", None))
        jobs = [(source, flags + machine_flags(source)) for source in compiled(kernels)]
        limit = int(os.environ.get("MAX_JOBS", 0)) or os.cpu_count() or 1
        with ThreadPoolExecutor(limit) as pool:
            cuda = [pool.submit(self.compile_cuda, nvcc, f, macros) for f in sources("*.cu") if nvcc]
            cpp = [pool.submit(self.compile_cpp, ext, *job, macros) for job in jobs]
            objects = [path for future in cpp + cuda for path in future.result()]
        link = ["-pthread", "-fvisibility=hidden"] if unix else []
        if os.environ.get("PREDET_SANITIZE") == "1":
            link += SANITIZERS
        libraries, folders = (["cudart_static", "dl", "rt"], cuda_folders(nvcc)) if nvcc else ([], [])
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            libraries=libraries,
            library_dirs=folders,
            extra_postargs=link,
            build_temp=self.build_temp,
            target_lang="c++",
        )

    def unix_flags(self) -> list[str]:
        flags = ["-std=c++17", "-O3", "-g0", "-pthread", "-fvisibility=hidden"]
        flags += ["-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"]
        if os.environ.get("PREDET_SANITIZE") == "1":
            flags += ["-O1", "-g", *SANITIZERS]
        return flags

    def supported_instruction_sets(self) -> list[str]:
        if platform.machine().lower() not in ("x86_64", "amd64"):
            return []
        return [name for name, flags in INSTRUCTION_SETS.items() if self.accepts(flags)]

    def accepts(self, flags: list[str]) -> bool:
        """Whether the compiler knows these flags and compiles for x86-64 with them."""
        program = (
            "#if !defined(__x86_64__)\n#error not x86-64\n#endif\n"
            "#include <immintrin.h>\nint supported() { return __builtin_cpu_supports(\"avx2\"); }\n"
        )
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder, "probe.cpp")
            probe.write_text(program)
            command = [*self.cpp_compiler(), *flags, "-c", str(probe), "-o", f"{probe}.o"]
            return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def cpp_compiler(self) -> list[str]:
        return list(getattr(self.compiler, "compiler_so_cxx", None) or self.compiler.compiler_so)

    def compile_cpp(
        self, ext: Extension, source: str, flags: list[str], macros: list[tuple[str, str | None]]
    ) -> list[str]:
        return self.compiler.compile(
            [source],
            output_dir=self.build_temp,
            macros=macros,
            include_dirs=ext.include_dirs,
            extra_postargs=flags,
            depends=ext.depends,
        )

    def compile_cuda(
        self, nvcc: str, source: str, macros: list[tuple[str, str | None]]
    ) -> list[str]:
        target = Path(self.build_temp, source).with_suffix(".cu.o")
        target.parent.mkdir(parents=True, exist_ok=True)
        flags = [f"-D{name}" if value is None else f"-D{name}={value}" for name, value in macros]
        flags += ["-std=c++17", "-O3", "--threads", "2", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
        for architecture in CUDA_ARCHITECTURES:
            code = f"sm_{architecture}"
            if architecture == CUDA_ARCHITECTURES[-1]:
                code = f"[{code},compute_{architecture}]"
            flags += ["-gencode", f"arch=compute_{architecture},code={code}"]
        command = [nvcc, *flags, "-c", source, "-o", str(target)]
        print(" ".join(command))
        subprocess.run(command, check=True)
        return [str(target)]


SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
SANITIZERS += ["-fno-omit-frame-pointer"]


def compiled(instruction_sets: list[str]) -> list[str]:
    """The .cpp files; of those made for an instruction set, the ones that can be compiled here."""
    others = [name for name in INSTRUCTION_SETS if name not in instruction_sets]
    return [
        source for source in sources("*.cpp") if not any(f"_{name}.cpp" in source for name in others)
    ]


def machine_flags(source: str) -> list[str]:
    for name, flags in INSTRUCTION_SETS.items():
        if source.endswith(f"_{name}.cpp"):
            return flags
    return []


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


def cuda_folders(nvcc: str) -> list[str]:
    """Where the CUDA libraries are; nvcc may be a wrapper script, so it is asked."""
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, "probe.cu")
        probe.touch()
        command = [nvcc, "--dryrun", "-c", str(probe)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    line = re.search(r"^#\$ LIBRARIES=(.*)$", answer.stderr, re.MULTILINE)
    if line is None:
        raise RuntimeError(f"nvcc does not tell its library folders: {' '.join(command)}")
    return [path for path in re.findall(r'-L([^"\s]+)', line.group(1)) if "stubs" not in path]


architectures = ";".join(f"{a}" for a in CUDA_ARCHITECTURES) + "+PTX"
native = Extension(
    "predet._C",
    sources=sources("*.cpp"),
    depends=[*sources("*.h"), "setup.py"],
    define_macros=[("PREDET_CUDA_ARCHITECTURES", f'"{architectures}"')],
    language="c++",
)

setup(
    packages=packages(),
    package_dir=MAPPED,
    ext_modules=[native],
    cmdclass={"build_ext": BuildNative},
)
