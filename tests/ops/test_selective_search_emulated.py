"""The CUDA kernels of Selective Search, run on the CPU thread by thread: the CPU's own boxes.

`cuda_emulation/` stands in for the CUDA headers, so that any C++ compiler can build the kernels. It
shows that their indices, groups of threads, counts and memory are right; what it cannot show is
that they run on a GPU, or how fast. The CPU's own boxes are tested against OpenCV's elsewhere.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from predet.ops import extension, selective_search, selective_search_cuda
from predet.ops.selective_search import SIMILARITIES, Regions, mode_settings

FOLDER = Path(__file__).parent / "cuda_emulation"
SOURCES = Path(__file__).parents[2] / "csrc"
BINDINGS = SOURCES / "selective_search" / "bindings.cpp"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")

pytestmark = [
    pytest.mark.skipif(
        COMPILER is None or not sys.platform.startswith("linux"),
        reason="needs a C++ compiler on Linux",
    ),
    pytest.mark.skipif(
        not extension.available("selective_search"), reason="predet._C is not built"
    ),
]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory):
    """The bindings of predet._C with kernels that work on the CPU's memory."""
    pybind11 = pytest.importorskip("pybind11", reason="to build the bindings")
    name = "emulated_selective_search"
    library = tmp_path_factory.mktemp("emulation") / f"{name}.so"
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-pthread", "-w"]
    flags += ["-DPREDET_WITH_CUDA", "-fvisibility=hidden"]
    include = [FOLDER, pybind11.get_include(), sysconfig.get_path("include")]
    sources = [
        FOLDER / "selective_search.cpp",
        *sorted(set((SOURCES / "selective_search").glob("*.cpp")) - {BINDINGS}),
        SOURCES / "common" / "parallel.cpp",
    ]
    command = [COMPILER, *flags, *(f"-I{folder}" for folder in include), *map(str, sources)]
    subprocess.run([*command, "-o", str(library)], check=True)
    spec = importlib.util.spec_from_file_location(name, library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def emulated(kernels, monkeypatch: pytest.MonkeyPatch):
    """selective_search() as on a GPU, and the numbers of images that were searched at a time."""
    parts = []

    def search(device, stream, shapes, *rest):
        parts.append(len(shapes))
        return kernels.selective_search_cuda(device, stream, shapes, *rest)

    native = SimpleNamespace(
        selective_search_cuda_bytes=kernels.selective_search_cuda_bytes,
        selective_search_cuda=search,
        selective_search_cuda_found=kernels.selective_search_cuda_found,
    )
    stand_in = SimpleNamespace(native=lambda: native, place=extension.place)
    monkeypatch.setattr(selective_search_cuda, "extension", stand_in)
    monkeypatch.setattr(selective_search_cuda, "free_bytes", lambda device: 2**30)

    def run(images, settings, ties="own", threads=1) -> list[Regions]:
        return selective_search._cuda_search(
            images, settings, "rgb", ties, threads, torch.device("cpu")
        )

    run.parts = parts
    return run


def assert_same(found: Regions, expected: Regions) -> None:
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, y)


def on_cpu(image, settings, ties="own") -> Regions:
    return selective_search.selective_search(image, settings=settings, ties=ties)


def scene(height: int, width: int, seed: int) -> np.ndarray:
    """Soft colours, some rectangles, some noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(5):
        y, x = rng.integers(height), rng.integers(width)
        image[y : y + height // 3, x : x + width // 4] = rng.integers(0, 256, 3)
    noise = rng.integers(-6, 7, image.shape)
    return np.clip(image.astype(int) + noise, 0, 255).astype(np.uint8)


IMAGES = {
    "scene": scene(90, 120, 1),
    "tall": scene(150, 61, 2),
    "noise": np.random.default_rng(3).integers(0, 256, (50, 40, 3), dtype=np.uint8),
    "flat": np.full((40, 60, 3), 77, np.uint8),
    "blocks": np.kron(
        np.random.default_rng(4).integers(0, 3, (8, 9, 1)), np.full((8, 8, 3), 100)
    ).astype(np.uint8),
    "row": scene(8, 90, 5)[:1],
    "column": scene(90, 8, 6)[:, :1],
    "pixel": np.full((1, 1, 3), 9, np.uint8),
    "tiny": scene(8, 8, 7)[:3, :2],
}


@pytest.mark.parametrize("mode", ["single", "fast"])
def test_boxes_of_many_images_are_the_cpus(emulated, mode):
    settings = mode_settings(mode)
    images = list(IMAGES.values())[:: 1 if mode == "single" else 3]
    found = emulated(images, settings)
    assert emulated.parts == [len(images) * len(settings.color_spaces)]
    for image, of_image in zip(images, found, strict=True):
        assert_same(of_image, on_cpu(image, settings))


@pytest.mark.parametrize(
    "change",
    [
        {"min_size": 0},
        {"min_size": 5, "k": (20.0, 60.0)},
        {"k": (100.0,), "strategies": (("size",), ("fill",), ("color", "fill"), SIMILARITIES)},
        {"color_spaces": ("gray", "blue", "rgi"), "sigma": 1.5},
    ],
    ids=["all regions", "small regions", "strategies", "colour spaces"],
)
def test_settings_are_followed(emulated, change):
    settings = replace(mode_settings("fast"), **change)
    images = [scene(64, 48, 8), IMAGES["blocks"], IMAGES["noise"][:20, :20]]
    found = emulated(images, settings)
    for image, of_image in zip(images, found, strict=True):
        assert_same(of_image, on_cpu(image, settings))


def test_what_hangs_on_ties_is_searched_as_opencv_does(emulated):
    images = [IMAGES["blocks"], scene(40, 50, 9)]
    settings = mode_settings("single")
    found = emulated(images, settings, ties="opencv")
    for image, of_image in zip(images, found, strict=True):
        assert_same(of_image, on_cpu(image, settings, ties="opencv"))
    blocks = (on_cpu(IMAGES["blocks"], settings, ties) for ties in ("own", "opencv"))
    assert len({tuple(map(tuple, regions.boxes)) for regions in blocks}) == 2  # it mattered


def test_images_that_do_not_fit_are_searched_in_parts(emulated, monkeypatch):
    images = [scene(30, 40, seed) for seed in range(5)]
    settings = mode_settings("single")
    whole = emulated(images, settings)
    needed = sum(
        selective_search_cuda.extension.native().selective_search_cuda_bytes(
            [(30, 40, 3)], ([200.0], 100, [[True] * 4], True, False)
        )
    )
    monkeypatch.setattr(selective_search_cuda, "free_bytes", lambda device: 3.5 * needed)
    parts = emulated(images, settings, threads=2)
    assert emulated.parts == [5, 2, 2, 1]
    for x, y in zip(whole, parts, strict=True):
        assert_same(x, y)
    monkeypatch.setattr(selective_search_cuda, "free_bytes", lambda device: 0)
    assert_same(emulated(images[:2], settings)[1], whole[1])
    assert emulated([], settings) == []


def test_the_binding_checks_what_it_is_given(kernels):
    good = ([100.0], 10, [[True, False, False, False]], True, False)
    shapes = [(6, 7, 3)]
    output, workspace = kernels.selective_search_cuda_bytes(shapes, good)
    assert output > 0
    assert workspace > 6 * 7 * 100
    for change in (
        {0: []},
        {0: [2.0, 1.0]},
        {0: [float("nan")]},
        {0: list(range(1, 18))},
        {1: -1},
        {2: []},
        {2: [[False] * 4]},
        {2: [[True] * 4] * 17},
        {3: False, 2: [[True] * 4]},
    ):
        search = tuple(change.get(i, value) for i, value in enumerate(good))
        with pytest.raises((ValueError, TypeError)):
            kernels.selective_search_cuda_bytes(shapes, search)
    for wrong in ([(0, 7, 3)], [(6, 7, 2)], [(70000, 1, 3)], [(6, 7)], [(2**14, 2**14, 3)]):
        with pytest.raises((ValueError, TypeError)):
            kernels.selective_search_cuda_bytes(wrong, good)
    for addresses in ([], [0] * 5, [1, 1, 0, 1, 1], [1, 1, 1, 0, 0]):
        with pytest.raises(ValueError, match=r"expected|memory"):
            kernels.selective_search_cuda(0, 0, shapes, good, addresses)
    with pytest.raises(ValueError, match="wrong size"):
        kernels.selective_search_cuda_found(shapes, good, np.zeros(output - 1, np.uint8))


def test_a_device_that_cannot_do_it_is_refused():
    for device in ("meta",) if torch.cuda.is_available() else ("meta", "cuda"):
        with pytest.raises(ValueError, match=f"cannot run on {device}"):
            selective_search.selective_search(IMAGES["tiny"], device=device)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "quality"])
def test_boxes_of_photographs_are_the_cpus(emulated, mode):
    data = pytest.importorskip("skimage.data", reason="scikit-image's photographs")
    settings = mode_settings(mode)
    for image in (data.astronaut(), data.coffee(), data.chelsea(), data.rocket()):
        scale = (300 if mode == "fast" else 160) / max(image.shape[:2])
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        found = emulated([image], settings)[0]
        assert_same(found, on_cpu(image, settings))
