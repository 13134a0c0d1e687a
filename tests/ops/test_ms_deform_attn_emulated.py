"""The CUDA kernels of multi-scale deformable attention, run on the CPU thread by thread.

`cuda_emulation/` stands in for the CUDA headers, so that any C++ compiler can build the kernels. It
shows that their indices, staging, sums and the deterministic mode are right; what it cannot show is
that they run on a GPU, or how fast.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from predet.ops import extension
from predet.ops.ms_deform_attn import ms_deform_attn_fused_reference, ms_deform_attn_reference

FOLDER = Path(__file__).parent / "cuda_emulation"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
SHAPES = [(5, 7), (3, 2), (1, 1)]
FLAT = [size for shape in SHAPES for size in shape]
PIXELS = sum(height * width for height, width in SHAPES)

pytestmark = pytest.mark.skipif(
    COMPILER is None or not sys.platform.startswith("linux"), reason="needs a C++ compiler on Linux"
)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("emulation") / "kernels.so"
    source = FOLDER / "ms_deform_attn.cpp"
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wno-unknown-pragmas", f"-I{FOLDER}"]
    subprocess.run([COMPILER, *flags, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def call(kernels: ctypes.CDLL, sizes: list[int], tensors: list[Tensor | None], backward: bool):
    kernels.run(
        (ctypes.c_int64 * len(sizes))(*sizes),
        (ctypes.c_int64 * len(FLAT))(*FLAT),
        (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors)),
        int(backward),
    )


def problem(corners: int, channels: int, points: int, dtype: torch.dtype) -> list[Tensor | None]:
    """value, reference points, offsets or locations, logits or weights"""
    generator = torch.Generator().manual_seed(0)
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32

    def rand(*shape: int, dtype: torch.dtype = arithmetic) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

    shape = (2, 5, 3, len(SHAPES), points)
    value = rand(2, PIXELS, 3, channels, dtype=dtype) - 0.5
    weights = rand(*shape, dtype=dtype) - 0.3
    if corners == 0:
        return [value, None, rand(*shape, 2) * 1.4 - 0.2, weights]
    return [value, rand(2, 5, len(SHAPES), corners), 8 * rand(*shape, 2) - 4, 4 * weights]


def expected_of(inputs: list[Tensor | None], grad_output: Tensor) -> list[Tensor | None]:
    """The output and the gradients of the inputs, in fp64."""
    leaves = [None if x is None else x.double().requires_grad_() for x in inputs]
    value, reference_points, points, weights = leaves
    if reference_points is None:
        output = ms_deform_attn_reference(value, SHAPES, points, weights)
    else:
        output = ms_deform_attn_fused_reference(value, SHAPES, reference_points, points, weights)
    output.backward(grad_output.double())
    return [output.detach(), *(None if x is None else x.grad for x in leaves)]


TOLERANCES = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.mark.parametrize("deterministic", [False, True], ids=["atomic", "deterministic"])
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize(
    ("corners", "channels", "points"),
    [(0, 16, 4), (2, 32, 4), (4, 32, 4), (2, 5, 3), (4, 200, 2), (2, 8, 40)],
)
def test_kernels_equal_the_reference(kernels, corners, channels, points, dtype, deterministic):
    inputs = problem(corners, channels, points, dtype)
    value, reference_points, given, weights = inputs
    batch, queries, heads, levels = weights.shape[:4]
    code = extension.DTYPE_CODES[dtype]
    sizes = [batch, PIXELS, heads, channels, queries, points, corners, levels, code, code]
    sizes.append(int(deterministic))

    # NaN shows what is left unwritten.
    output = torch.full((batch, queries, heads * channels), float("nan"), dtype=dtype)
    call(kernels, sizes, [*inputs, output], backward=False)

    grad_output = torch.rand_like(output) - 0.5
    gradients = [None if x is None else torch.full_like(x, float("nan")) for x in inputs]
    if reference_points is not None:  # one part for each head
        gradients[1] = torch.full((batch, queries, heads, levels, corners), float("nan")).to(given)
    workspace = None
    if deterministic:
        workspace = torch.zeros(value.numel() + 2, dtype=torch.int64)
    elif dtype in (torch.bfloat16, torch.float16):
        workspace = torch.zeros(value.shape, dtype=torch.float32)
    call(kernels, sizes, [*inputs, grad_output, *gradients, workspace], backward=True)
    if reference_points is not None:
        gradients[1] = gradients[1].sum(2)

    for found, exact in zip([output, *gradients], expected_of(inputs, grad_output), strict=True):
        if exact is not None:
            error = (found.double() - exact).abs().max() / exact.abs().max()
            assert error < TOLERANCES[dtype]
