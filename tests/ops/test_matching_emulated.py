"""The CUDA kernels of matching, run on the CPU thread by thread: the same results as the CPU's.

`cuda_emulation/` stands in for the CUDA headers, so that any C++ compiler can build the kernels. It
shows that their indices, groups of threads, bounds and counts are right; what it cannot show is
that they run on a GPU, or how fast. The CPU's own results are tested against scipy elsewhere.
"""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from predet.ops import extension
from predet.ops.matching_native import linear_sum_assignment_native, match_native

FOLDER = Path(__file__).parent / "cuda_emulation"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
WEIGHTS = (2.0, 5.0, 2.0, 0.25)

pytestmark = [
    pytest.mark.skipif(
        COMPILER is None or not sys.platform.startswith("linux"),
        reason="needs a C++ compiler on Linux",
    ),
    pytest.mark.skipif(not extension.available(), reason="predet._C is not built"),
]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("emulation") / "kernels.so"
    source = FOLDER / "hungarian.cpp"
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", f"-I{FOLDER}"]
    subprocess.run([COMPILER, *flags, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def integers(numbers) -> ctypes.Array:
    return (ctypes.c_int64 * len(numbers))(*numbers)


def addresses(tensors: list[Tensor]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def emulated_match(kernels, p: dict, copies: int, softmax: bool, gamma: float):
    logits = p["logits"]
    layers, total = logits.shape[0], sum(p["counts"])
    found = torch.full((layers, copies * total), -7)
    bad = torch.full((layers, len(p["counts"])), -7)
    code = extension.DTYPE_CODES[logits.dtype]
    kernels.run_match(
        integers([*logits.shape, copies, code, int(softmax)]),
        integers(p["counts"]),
        (ctypes.c_float * 5)(*WEIGHTS, gamma),
        addresses([logits, p["boxes"], p["target_classes"], p["target_boxes"], found, bad]),
    )
    return found, bad


def emulated_assignment(kernels, cost: Tensor, counts: list[int]):
    found = torch.full(cost.shape[:2], -7)
    bad = torch.full((len(cost), len(counts)), -7)
    kernels.run_assign(
        integers([len(cost), len(counts), cost.shape[2], extension.DTYPE_CODES[cost.dtype]]),
        integers(counts),
        addresses([cost, found, bad]),
    )
    return found, bad


def problem(layers: int, counts: list[int], queries: int, classes: int, seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    shape, total = (layers, len(counts), queries), sum(counts)
    return {
        "logits": 2 * torch.randn(*shape, classes, generator=generator),
        "boxes": torch.cat([rand(*shape, 2), 0.05 + 0.5 * rand(*shape, 2)], dim=-1),
        "target_classes": torch.randint(classes, (total,), generator=generator),
        "target_boxes": torch.cat([rand(total, 2), 0.05 + 0.5 * rand(total, 2)], dim=-1),
        "counts": counts,
    }


@pytest.mark.parametrize(
    ("layers", "counts", "queries", "classes"),
    [
        (2, [3, 0, 8, 1], 70, 21),
        (1, [1], 1, 1),
        (3, [5, 12], 130, 16),
        (1, [20, 2], 8, 92),  # more targets than queries
        (2, [4], 0, 3),
        (1, [0, 0], 6, 3),
    ],
)
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize(
    ("softmax", "gamma"), [(True, 2.0), (False, 2.0), (False, 1.5)], ids=["softmax", "2", "1.5"]
)
def test_matches_are_the_cpus(kernels, layers, counts, queries, classes, copies, softmax, gamma):
    p = problem(layers, counts, queries, classes, seed=queries)
    found, bad = emulated_match(kernels, p, copies, softmax, gamma)
    expected = match_native(*p.values(), copies, softmax, (*WEIGHTS, gamma))
    assert torch.equal(found, expected[0])
    assert torch.equal(bad, expected[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_matches_of_other_dtypes_are_the_cpus(kernels, dtype):
    p = problem(2, [3, 0, 8, 1], 70, 21, seed=1)
    p["logits"] = p["logits"].to(dtype)
    found, _ = emulated_match(kernels, p, 1, True, 2.0)
    assert torch.equal(found, match_native(*p.values(), 1, True, (*WEIGHTS, 2.0))[0])


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("copies", [1, 6])
def test_what_is_not_finite_is_counted_as_on_the_cpu(kernels, softmax, copies):
    p = problem(2, [3, 0, 8, 1], 40, 18, seed=2)
    generator = torch.Generator().manual_seed(1)
    for value in (math.nan, math.inf, -math.inf):
        p["logits"][torch.rand(p["logits"].shape, generator=generator) < 0.004] = value
        p["boxes"][torch.rand(p["boxes"].shape, generator=generator) < 0.01] = value
    p["logits"][0, 2, :3] = torch.tensor([math.inf, -math.inf, math.nan])[:, None]
    found, bad = emulated_match(kernels, p, copies, softmax, 2.0)
    expected = match_native(*p.values(), copies, softmax, (*WEIGHTS, 2.0))
    assert bad.min() == 0 < bad.max()
    assert torch.equal(found, expected[0])
    assert torch.equal(bad, expected[1])


def test_a_class_that_does_not_exist_makes_bad_costs(kernels):
    """On a GPU nobody can raise; nothing out of bounds is read."""
    p = problem(1, [2, 2], 30, 5, seed=3)
    p["target_classes"][1], p["target_classes"][2] = 5, -(2**60)
    found, bad = emulated_match(kernels, p, 1, True, 2.0)
    assert bad.tolist() == [[30, 30]]
    assert ((found >= 0) & (found < 30)).all()


def test_more_images_than_one_launch_holds(kernels):
    p = problem(1, [n % 3 for n in range(300)], 4, 2, seed=4)
    found, bad = emulated_match(kernels, p, 1, False, 2.0)
    assert torch.equal(found, match_native(*p.values(), 1, False, (*WEIGHTS, 2.0))[0])
    assert (bad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["normal", "tied", "constant", "product", "bad"])
@pytest.mark.parametrize("counts", [[3, 0, 30], [80], [200, 5]])
def test_assignments_are_the_cpus(kernels, counts, kind, dtype):
    generator = torch.Generator().manual_seed(5)
    cost = torch.randn(2, sum(counts), 150, generator=generator, dtype=torch.float64)
    if kind == "tied":
        cost = cost.round()
    elif kind == "constant":
        cost = torch.ones_like(cost)
    elif kind == "product":
        cost = cost[:, :, :1].abs() * cost[:, :1].abs()
    elif kind == "bad":
        cost[cost > 1.5] = math.nan
    cost = cost.to(dtype)
    found, bad = emulated_assignment(kernels, cost, counts)
    expected = linear_sum_assignment_native(cost, counts)
    assert torch.equal(found, expected[0])
    assert torch.equal(bad, expected[1])


def test_a_large_problem_takes_a_whole_block(kernels):
    """From 512 assigned columns on, 256 threads work on one problem."""
    generator = torch.Generator().manual_seed(6)
    cost = torch.rand(1, 560, 600, generator=generator).round(decimals=2)
    found, bad = emulated_assignment(kernels, cost, [560])
    assert torch.equal(found, linear_sum_assignment_native(cost, [560])[0])
    assert bad.item() == 0
