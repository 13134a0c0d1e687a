"""Selective Search against OpenCV's, which shares no code with ours beyond the image filters."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import cv2
import matplotlib.cbook
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from predet.ops import extension, selective_search
from predet.ops.color_images import convert, smooth
from predet.ops.selective_search import (
    SIMILARITIES,
    Regions,
    SearchSettings,
    from_rows,
    mode_settings,
    rank,
    to_rows,
)

SPACES = ("hsv", "lab", "gray", "blue", "hue", "rgi")
search = selective_search.selective_search

needs_native = pytest.mark.skipif(
    not extension.available("selective_search"), reason="the native extension is not built"
)


def photograph(width: int, height: int, left: int = 0, top: int = 0) -> np.ndarray:
    """A part of the photograph that comes with matplotlib: (height, width, 3) uint8 RGB."""
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        image = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR_RGB)
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def soft_noise(height: int, width: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 6), None, 0, 255, cv2.NORM_MINMAX)


def rectangles(height: int, width: int, seed: int) -> np.ndarray:
    """Flat colours and right angles: nearly all edges and similarities have equals."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 128, np.uint8)
    for _ in range(40):
        x, y = rng.integers(0, width), rng.integers(0, height)
        w, h = rng.integers(4, width // 3), rng.integers(4, height // 3)
        image[y : y + h, x : x + w] = rng.choice([0, 60, 120, 180, 240], 3)
    return image


def opencv_boxes(image: np.ndarray, mode: str) -> set[tuple[int, ...]]:
    """The boxes of `cv2.ximgproc.segmentation` with its own defaults, xyxy."""
    found = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    found.setBaseImage(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if mode == "single":
        found.switchToSingleStrategy()
    elif mode == "fast":
        found.switchToSelectiveSearchFast()
    else:
        found.switchToSelectiveSearchQuality()
    boxes = found.process().astype(int)
    boxes[:, 2:] += boxes[:, :2]
    return as_set(boxes)


def as_set(boxes: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, boxes.astype(int).tolist()))


IMAGES = {
    "photograph": lambda: photograph(220, 240, 140, 40),
    "photograph, wide": lambda: photograph(400, 90, 40, 320),
    "photograph, narrow": lambda: photograph(9, 260, 256, 100),
    "noise": lambda: soft_noise(150, 211, 0),
    "rectangles": lambda: rectangles(160, 200, 1),
    "flat": lambda: np.full((40, 60, 3), 77, np.uint8),
    "gray": lambda: np.repeat(photograph(128, 128, 190, 100)[..., :1], 3, axis=2),
}


@needs_native
@pytest.mark.parametrize("mode", ["single", "fast", "quality"])
@pytest.mark.parametrize("name", IMAGES)
def test_boxes_are_opencvs(name: str, mode: str) -> None:
    image = IMAGES[name]()
    found = search(image, mode=mode)
    assert as_set(found.boxes) == opencv_boxes(image, mode)
    assert len(as_set(found.boxes)) == len(found.boxes)


@needs_native
@pytest.mark.slow
@pytest.mark.parametrize("size", [300, 500, 800])
@pytest.mark.parametrize("mode", ["single", "fast", "quality"])
def test_boxes_are_opencvs_on_photographs(mode: str, size: int) -> None:
    data = pytest.importorskip("skimage.data", reason="scikit-image's photographs")
    for image in (data.astronaut(), data.coffee(), data.chelsea(), data.rocket()):
        scale = size / max(image.shape[:2])
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        assert as_set(search(image, mode=mode).boxes) == opencv_boxes(image, mode)


@needs_native
@pytest.mark.parametrize(
    "change",
    [
        {"sigma": 0.85},
        {"min_size": 99},
        {"k": (150, 300, 480)},
        {"color_spaces": ("hsv",)},
        {"strategies": (SIMILARITIES,)},
        {"strategies": (SIMILARITIES, ("fill", "size"))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_settings_give_other_boxes(change: dict) -> None:
    """So the comparison with OpenCV notices each of them."""
    image = photograph(200, 200, 150, 60)
    other = search(image, settings=replace(mode_settings("fast"), **change))
    assert as_set(other.boxes) != opencv_boxes(image, "fast")


@needs_native
def test_swapped_channels_are_what_opencv_makes_of_rgb() -> None:
    image = photograph(200, 200, 150, 60)
    swapped = search(image, channel_order="bgr")
    assert as_set(swapped.boxes) == opencv_boxes(image[..., ::-1], "fast")
    assert as_set(swapped.boxes) != as_set(search(image).boxes)


def small_images() -> st.SearchStrategy[np.ndarray]:
    """Up to 40 x 40, of few or many values, so with and without ties."""
    return st.builds(
        lambda height, width, values, block, seed: (
            np.repeat(
                np.repeat(
                    np.random.default_rng(seed).integers(0, values, (height, width, 3)),
                    block,
                    axis=0,
                ),
                block,
                axis=1,
            )[:40, :40].astype(np.uint8)
            * np.uint8(255 // max(1, values - 1))
        ),
        st.integers(1, 40),
        st.integers(1, 40),
        st.sampled_from([1, 2, 3, 6, 256]),
        st.sampled_from([1, 2, 5]),
        st.integers(0, 2**32 - 1),
    )


@needs_native
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    small_images(),
    st.lists(st.sampled_from(SPACES), min_size=1, max_size=2, unique=True),
    st.lists(st.sampled_from([1, 30, 150, 400.5]), min_size=1, max_size=4, unique=True),
    st.lists(
        st.lists(st.sampled_from(SIMILARITIES), min_size=1, unique=True).map(tuple),
        min_size=1,
        max_size=2,
    ),
    st.sampled_from([0, 1, 4, 20, 100]),
    st.sampled_from([0.3, 0.8, 2.0]),
)
def test_small_images_with_any_settings(image, spaces, ks, parts, min_size, sigma) -> None:
    chosen = SearchSettings(
        color_spaces=tuple(spaces),
        k=tuple(sorted(ks)),
        strategies=tuple(parts),
        min_size=min_size,
        sigma=sigma,
    )
    by_opencv = selective_search._opencv_regions(image, chosen, "rgb")
    assert as_set(search(image, settings=chosen).boxes) == as_set(by_opencv.boxes)


@needs_native
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    "make", [lambda: photograph(160, 150, 180, 80), lambda: rectangles(90, 110, 3)]
)
def test_first_regions_are_opencvs(space: str, make) -> None:
    values = convert(make(), space, "rgb")
    ks = [20.0, 150.0, 300.0, 1000.0]
    planes = values.reshape(*values.shape[:2], -1)
    labels = extension.native().selective_search_labels(smooth(planes, 0.8), ks, 50, True)
    for k, of_k in zip(ks, labels, strict=True):
        graph = cv2.ximgproc.segmentation.createGraphSegmentation(float(np.float32(0.8)), k, 50)
        np.testing.assert_array_equal(of_k, graph.processImage(values))


def grouped_by_lists(labels: np.ndarray) -> Counter:
    """How often each (box, level) is made with the strategy "size"; for small images without ties.

    Straight from the paper: a list of all pairs that touch, of which the best is looked for anew
    after every merge.
    """
    regions = {}
    for label in range(labels.max() + 1):
        y, x = np.nonzero(labels == label)
        box = (x.min(), y.min(), x.max() + 1, y.max() + 1)
        regions[label] = (tuple(map(int, box)), len(x), 1)
    here = labels[1:, 1:]
    pairs = set()
    for other in (labels[1:, :-1], labels[:-1, 1:], labels[:-1, :-1]):
        pairs |= {frozenset(p) for p in zip(here.flat, other.flat, strict=True) if p[0] != p[1]}
    made = Counter((box, level) for box, _, level in regions.values())
    while pairs:
        a, b = min(pairs, key=lambda pair: sum(regions[label][1] for label in pair))
        (box_a, size_a, level_a), (box_b, size_b, level_b) = regions[a], regions[b]
        box = (*np.minimum(box_a[:2], box_b[:2]), *np.maximum(box_a[2:], box_b[2:]))
        new = len(regions)
        regions[new] = (tuple(map(int, box)), size_a + size_b, max(level_a, level_b) + 1)
        made[regions[new][0], regions[new][2]] += 1
        pairs = {frozenset(new if n in (a, b) else n for n in pair) for pair in pairs}
        pairs = {pair for pair in pairs if len(pair) == 2}
    return made


@needs_native
def test_levels_count_the_merges() -> None:
    checked = 0
    for seed in range(60):
        image = soft_noise(60, 70, seed)
        chosen = SearchSettings(
            color_spaces=("gray",), k=(100,), strategies=(("size",),), min_size=30
        )
        planes = convert(image, "gray", "rgb")[..., None]
        native = extension.native()
        labels = native.selective_search_labels(smooth(planes, 0.8), [100.0], 30, True)[0]
        sizes = np.bincount(labels.ravel())
        if len(set(sizes)) < len(sizes):  # ties: the order of merges is not defined
            continue
        found = search(image, settings=chosen)
        times = np.diff(found.first)
        boxes = np.repeat(found.boxes.astype(int), times, axis=0).tolist()
        made = Counter(zip(map(tuple, boxes), found.all_levels.tolist(), strict=True))
        assert made == grouped_by_lists(labels)
        checked += max(found.levels) > 3
    assert checked >= 5


@needs_native
def test_results_do_not_depend_on_threads_or_company() -> None:
    images = [photograph(120, 100, 200, 100), soft_noise(64, 91, 5), rectangles(80, 80, 2)] * 2
    alone = [search(image, mode="quality") for image in images]
    for threads in (1, 2, 5, 64):
        together = search(images, mode="quality", threads=threads)
        for a, b in zip(alone, together, strict=True):
            for x, y in zip(a, b, strict=True):
                np.testing.assert_array_equal(x, y)
    for x, y in zip(alone[0], search(images[0], mode="quality", threads=3), strict=True):
        np.testing.assert_array_equal(x, y)


@needs_native
def test_regions_are_well_formed() -> None:
    image = photograph(150, 130, 180, 90)
    found = search(image)
    assert found.boxes.dtype == np.float32
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert found.boxes.min() == 0
    assert found.boxes[:, 2].max() == 150
    assert found.boxes[:, 3].max() == 130
    assert found.first[0] == 0
    assert found.first[-1] == len(found.all_levels)
    assert (found.levels == np.minimum.reduceat(found.all_levels, found.first[:-1])).all()
    assert found.levels.min() == 1
    assert (np.lexsort(found.boxes.T[::-1]) == np.arange(len(found.boxes))).all()
    assert search([]) == []
    # Not contiguous, and only to be read.
    view = np.asfortranarray(image)
    view.flags.writeable = False
    np.testing.assert_array_equal(search(view).boxes, found.boxes)


def two_boxes() -> Regions:
    """One made twice at level 1, one made once at level 2."""
    boxes = np.array([[0, 0, 4, 4], [0, 0, 8, 8]], dtype=np.float32)
    levels = np.array([1, 1, 2], dtype=np.int32)
    return Regions(boxes, levels[[0, 2]], levels, np.array([0, 2, 3]))


def test_rank_draws_opencvs_law() -> None:
    first = [rank(two_boxes(), seed)[0] for seed in range(6000)]
    # P(min(u, v) < 2 w) = 1 - integral of (1 - 2 w)^2 over 0 .. 1/2 = 5/6
    assert abs(np.mean(np.equal(first, 0)) - 5 / 6) < 0.02


@needs_native
def test_rank_is_a_function_of_the_seed() -> None:
    found = search(photograph(150, 130, 180, 90))
    order = rank(found, (7, 0, 3))
    assert sorted(order) == list(range(len(found.boxes)))
    np.testing.assert_array_equal(order, rank(found, (7, 0, 3)))
    assert not np.array_equal(order, rank(found, (7, 1, 3)))
    levels = found.levels[order]
    quarter = len(order) // 4
    assert levels[:quarter].mean() < 0.6 * levels[-quarter:].mean()


@needs_native
def test_rows_of_a_store_keep_what_rank_needs() -> None:
    found = search(photograph(150, 130, 180, 90))
    order = rank(found, 1)
    boxes, scores = to_rows(found, order)
    best = np.argsort(-scores, kind="stable")[: (scores >= 0).sum()]
    np.testing.assert_array_equal(boxes[best], found.boxes[order])
    assert (scores[best] > 0).all()
    for again in (from_rows(boxes, scores), from_rows(boxes[::-1], scores[::-1])):
        for x, y in zip(found, again, strict=True):
            np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(rank(again, 5), rank(found, 5))
    with pytest.raises(ValueError, match="carry no levels"):
        from_rows(boxes[best], scores[best])


def test_no_boxes_make_no_rows() -> None:
    none = from_rows(np.zeros((0, 4)), np.zeros(0))
    assert len(rank(none, 0)) == 0
    assert to_rows(none, rank(none, 0))[0].shape == (0, 4)


@pytest.mark.parametrize("mode", ["single", "fast", "quality"])
def test_without_the_extension_opencv_searches(mode, monkeypatch, caplog) -> None:
    image = photograph(100, 110, 200, 100)
    monkeypatch.setattr(extension, "_C", None)
    monkeypatch.setattr(extension, "_announced", set())
    with caplog.at_level(logging.WARNING):
        found = [search(image, mode=mode) for _ in range(2)]
    assert len(caplog.records) == 1
    assert "selective_search does without the native extension" in caplog.text
    assert as_set(found[0].boxes) == opencv_boxes(image, mode)
    assert (found[1].all_levels == 1).all()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3), np.float32),
        np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (70000, 2, 3), (0, 0, 0)),
        np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (9000, 9000, 3), (0, 0, 0)),
        [[1, 2], [3]],
    ],
    ids=["empty", "gray", "alpha", "float", "long", "large", "list"],
)
def test_images_that_are_none_are_refused(image) -> None:
    with pytest.raises(ValueError, match="images must"):
        search(image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "best"}, "mode must be"),
        ({"channel_order": "rbg"}, "channel_order must be"),
        ({"ties": "none"}, "ties must be"),
        ({"threads": 0}, "threads must be"),
    ],
)
def test_options_that_do_not_exist_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        search(np.zeros((5, 5, 3), np.uint8), **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"color_spaces": ()}, "at least one"),
        ({"color_spaces": ("cmyk",)}, "color_spaces must be among"),
        ({"strategies": ((),)}, "a strategy must name"),
        ({"strategies": (("size", "size"),)}, "a strategy must name"),
        ({"strategies": (("shape",),)}, "a strategy must name"),
        ({"k": ()}, "k must be"),
        ({"k": (300, 150)}, "k must be"),
        ({"k": (0,)}, "k must be"),
        ({"k": (float("nan"),)}, "k must be"),
        ({"sigma": 0}, "sigma must be"),
        ({"sigma": float("nan")}, "sigma must be"),
        ({"min_size": -1}, "min_size must be"),
    ],
)
def test_settings_that_are_not_possible_are_refused(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        replace(mode_settings("fast"), **change)


@needs_native
def test_the_binding_checks_what_it_is_given() -> None:
    native = extension.native()
    values = np.zeros((6, 7, 3), np.uint8)
    smoothed = np.zeros((6, 7, 3), np.float32)
    good = {
        "values": values, "smoothed": smoothed, "derivatives": None, "k": [100.0],
        "min_size": 10, "with_color": True, "fused": False, "opencv_ties": True, "threads": 1,
    }  # fmt: skip
    regions = native.selective_search_regions(**good)
    for change in (
        {"values": values[..., :2]},
        {"values": values[0]},
        {"values": np.zeros((0, 7, 3), np.uint8)},
        {"values": values.astype(np.float64)},
        {"values": None},
        {"smoothed": smoothed[:5]},
        {"smoothed": np.zeros((6, 7, 3), np.float64)},
        {"derivatives": np.zeros((3, 4, 6, 6), np.float32)},
        {"derivatives": np.zeros((3, 4, 6, 7), np.complex64)},
        {"derivatives": "none"},
        {"k": []},
        {"k": [-1.0]},
        {"k": [float("nan")]},
        {"k": [2.0, 1.0]},
        {"min_size": -1},
        {"min_size": 2**40},
        {"threads": 0},
    ):
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            native.selective_search_regions(**{**good, **change})
    color, texture = [True, False, False, False], [False, False, True, False]
    assert len(native.selective_search_boxes([[regions]], [color], True, 1)) == 1
    for images, parts in (
        ([[regions]], [texture]),
        ([[regions]], []),
        ([[regions]], [[False] * 4]),
        ([[None]], [color]),
        ([[3]], [color]),
    ):
        with pytest.raises((ValueError, TypeError)):
            native.selective_search_boxes(images, parts, True, 1)


MEASURE = """
import numpy as np
from predet.ops.selective_search import selective_search

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

peaks = []
for side in (500, 1500):
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    selective_search(image)
    peaks.append(peak())
print((peaks[1] - peaks[0]) / (1500**2 - 500**2))
"""


@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_grows_with_the_pixels() -> None:
    """Noise is the worst case: nearly every pixel is a region of its own at first.

    The kernel counts resident pages on each processor and sums them up late: off by tens of MB
    on a machine of many. Images far apart in size make that little.
    """
    command = [sys.executable, "-c", MEASURE]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 50 < float(answer.stdout) < 400  # bytes a pixel
