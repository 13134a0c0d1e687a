"""Selective Search (Uijlings et al., IJCV 2013): class-agnostic boxes from grouping regions.

A search is done for several colour spaces, sizes `k` of the first regions, and strategies (what
makes two regions similar). Modes, defaults and arithmetic are those of
`cv2.ximgproc.segmentation`, and so is the set of boxes: colour conversion, smoothing and
derivatives are OpenCV's own, the rest is csrc/selective_search.

OpenCV orders the boxes by random x level, where the level counts the merges below a region, and
draws from a generator that nobody can seed. Here all levels of a box are kept, and `rank` draws the
order from a seed, as often as wanted, without another search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, overload

import cv2
import numpy as np
import torch

from predet.ops import extension
from predet.ops.color_images import CONVERSIONS, ColorSpace, color_planes, convert, opencv_fuses
from predet.ops.selective_search_cuda import CudaSearch, search_on_cuda

Similarity = Literal["color", "fill", "texture", "size"]
Mode = Literal["single", "fast", "quality"]

SIMILARITIES: tuple[Similarity, ...] = ("color", "fill", "texture", "size")
MAX_PIXELS = 1 << 26
MAX_SIDE = 65535


class Regions(NamedTuple):
    """The boxes of one image: N distinct ones, ascending by x1, y1, x2, y2.

    Several searches make the same box, each at a level: 1 for a region of a first segmentation,
    else one more than the higher of the two regions that were merged. The M levels of all boxes lie
    one after the other in `all_levels`, those of box i at `first[i]:first[i + 1]`, ascending.
    """

    boxes: np.ndarray  # (N, 4) float32 absolute xyxy, whole numbers
    levels: np.ndarray  # (N,) int32, the lowest level of each box
    all_levels: np.ndarray  # (M,) int32
    first: np.ndarray  # (N + 1,) int64


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """What a search consists of: every colour space x every k x every strategy.

    Attributes:
        k: sizes of the first regions; larger gives fewer and larger regions. Ascending, positive.
        strategies: the similarities that each strategy adds up, with equal weights.
        sigma: standard deviation of the smoothing, in pixels.
        min_size: first regions with fewer pixels are joined to a neighbour.
    """

    color_spaces: tuple[ColorSpace, ...]
    k: tuple[float, ...]
    strategies: tuple[tuple[Similarity, ...], ...]
    sigma: float = 0.8
    min_size: int = 100

    def __post_init__(self) -> None:
        if not self.color_spaces or not self.strategies:
            raise ValueError("a search needs at least one colour space and one strategy")
        for space in self.color_spaces:
            if space not in CONVERSIONS:
                raise ValueError(f"color_spaces must be among {tuple(CONVERSIONS)}, got {space!r}")
        for strategy in self.strategies:
            unknown = set(strategy) - set(SIMILARITIES)
            if not strategy or unknown or len(set(strategy)) < len(strategy):
                raise ValueError(
                    f"a strategy must name some of {SIMILARITIES}, each once, got {strategy!r}"
                )
        ascending = all(a <= b for a, b in zip(self.k, self.k[1:], strict=False))
        if not self.k or not ascending or not all(0 < k < float("inf") for k in self.k):
            raise ValueError(f"k must be positive numbers in ascending order, got {self.k}")
        if not 0 < self.sigma < 100:
            raise ValueError(f"sigma must be above 0 and below 100 pixels, got {self.sigma}")
        if not 0 <= self.min_size <= MAX_PIXELS:
            raise ValueError(f"min_size must be 0 to 2^26 pixels, got {self.min_size}")


_ALL: tuple[Similarity, ...] = SIMILARITIES
_WITHOUT_COLOR: tuple[Similarity, ...] = ("fill", "texture", "size")


def mode_settings(mode: Mode, *, base_k: float | None = None, inc_k: float = 150) -> SearchSettings:
    """OpenCV's settings of a mode.

    The paper's fourth colour space is the hue. OpenCV's "quality" means it too, but overwrites the
    hue with the image's blue channel before it is used, so "blue" is what gives OpenCV's boxes.

    Args:
        mode: "single" (1 grouping), "fast" (12) or "quality" (100).
        base_k: first k; None is 200 for "single", else 150.
        inc_k: step to the next k; "fast" has three, "quality" five.

    Raises:
        ValueError: an unknown mode, or a k that is not positive.
    """
    first = base_k if base_k is not None else (200 if mode == "single" else 150)
    if mode == "single":
        return SearchSettings(color_spaces=("hsv",), k=(first,), strategies=(_ALL,))
    if mode == "fast":
        return SearchSettings(
            color_spaces=("hsv", "lab"),
            k=tuple(first + i * inc_k for i in range(3)),
            strategies=(_ALL, _WITHOUT_COLOR),
        )
    if mode == "quality":
        return SearchSettings(
            color_spaces=("hsv", "lab", "gray", "blue", "rgi"),
            k=tuple(first + i * inc_k for i in range(5)),
            strategies=(_ALL, _WITHOUT_COLOR, ("fill",), ("size",)),
        )
    raise ValueError(f"mode must be 'single', 'fast' or 'quality', got {mode!r}")


@overload
def selective_search(
    images: np.ndarray,
    *,
    mode: Mode = ...,
    settings: SearchSettings | None = ...,
    channel_order: Literal["rgb", "bgr"] = ...,
    ties: Literal["opencv", "own"] = ...,
    threads: int = ...,
    device: str | torch.device = ...,
) -> Regions: ...


@overload
def selective_search(
    images: Sequence[np.ndarray],
    *,
    mode: Mode = ...,
    settings: SearchSettings | None = ...,
    channel_order: Literal["rgb", "bgr"] = ...,
    ties: Literal["opencv", "own"] = ...,
    threads: int = ...,
    device: str | torch.device = ...,
) -> list[Regions]: ...


def selective_search(
    images: np.ndarray | Sequence[np.ndarray],
    *,
    mode: Mode = "fast",
    settings: SearchSettings | None = None,
    channel_order: Literal["rgb", "bgr"] = "rgb",
    ties: Literal["opencv", "own"] = "opencv",
    threads: int = 1,
    device: str | torch.device = "cpu",
) -> Regions | list[Regions]:
    """All boxes of an image, or of each of several images.

    The boxes depend neither on `threads` nor on the device. Without the native extension OpenCV's
    own search runs, which does not tell the levels: all are then 1.

    Args:
        images: (H, W, 3) uint8, or a sequence of such images of any sizes.
        mode: OpenCV's choice of colour spaces, k and strategies; see `mode_settings`.
        settings: instead of a mode.
        channel_order: order of the images' channels. "bgr" for RGB images swaps red and blue, as
            code does that hands an image from Pillow to OpenCV (DETReg's).
        ties: which of several equally light edges or equally similar pairs comes first. "opencv":
            the one that `std::sort` happens to put first in OpenCV's lists; a search in which that
            could matter is then done a second time, with these lists. "own": a fixed rule that
            does not hang on the C++ library.
        threads: how many to use; images, colour spaces, k and strategies are shared out.
        device: a GPU takes many images at once, as many as its memory holds; see
            selective_search_cuda.py. Searches that hang on OpenCV's ties come back to the CPU.

    Raises:
        ValueError: an image of another shape or type, without pixels or with more than 2^26,
            settings that are not possible, or a device that cannot do it.
    """
    settings = settings if settings is not None else mode_settings(mode)
    if channel_order not in ("rgb", "bgr"):
        raise ValueError(f"channel_order must be 'rgb' or 'bgr', got {channel_order!r}")
    if ties not in ("opencv", "own"):
        raise ValueError(f"ties must be 'opencv' or 'own', got {ties!r}")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    single = isinstance(images, np.ndarray)
    batch = [images] if isinstance(images, np.ndarray) else list(images)
    for image in batch:
        check_image(image)
    if not extension.available("selective_search"):
        found = [_opencv_regions(image, settings, channel_order) for image in batch]
    elif torch.device(device).type == "cpu":
        found = _native_search(batch, settings, channel_order, ties, threads)
    else:
        found = _cuda_search(batch, settings, channel_order, ties, threads, torch.device(device))
    return found[0] if single else found


def rank(regions: Regions, seed: int | Sequence[int] | np.random.Generator) -> np.ndarray:
    """Draw OpenCV's order of the boxes -> (N,) indices into `regions.boxes`, best first.

    Each time that a box was made draws a number in [0, 1) and multiplies it with its level; the
    lowest counts. So regions of the first segmentations tend to come first. The order is a pure
    function of the regions and the seed.

    Args:
        seed: what `numpy.random.default_rng` takes, for instance (seed, epoch, image), or a
            generator, which is then drawn from.
    """
    if len(regions.boxes) == 0:
        return np.zeros(0, dtype=np.int64)
    drawn = np.random.default_rng(seed).random(len(regions.all_levels)) * regions.all_levels
    return np.argsort(np.minimum.reduceat(drawn, regions.first[:-1]), kind="stable")


def to_rows(regions: Regions, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and scores as the rows of a box store, from which `from_rows` makes the regions again.

    First the N boxes in the given order, scored 1, 1 - 1/N, ..., 1/N; then every box once more for
    each time that it was made, scored minus its level. So whoever takes the best boxes, or those
    that score at least 0, sees the boxes in order, and the other rows keep what `rank` needs.

    Returns:
        boxes (N + M, 4) float32 and scores (N + M,) float32.
    """
    count = len(regions.boxes)
    scores = 1 - np.arange(count) / max(count, 1)
    boxes = np.concatenate(
        [regions.boxes[order], np.repeat(regions.boxes, np.diff(regions.first), axis=0)]
    )
    return boxes, np.concatenate([scores, -regions.all_levels]).astype(np.float32)


def from_rows(boxes: np.ndarray, scores: np.ndarray) -> Regions:
    """The regions that `to_rows` made rows of; the boxes may have been scaled since.

    Args:
        boxes: (R, 4) absolute xyxy.
        scores: (R,), below 0 where they tell a level.

    Raises:
        ValueError: there are boxes but no levels, so these are no rows of Selective Search.
    """
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    made = np.asarray(scores) < 0
    if len(boxes) and not made.any():
        raise ValueError(f"these {len(boxes)} boxes carry no levels of Selective Search")
    return _collected(boxes[made], -np.asarray(scores)[made])


def _collected(boxes: np.ndarray, levels: np.ndarray) -> Regions:
    """Regions of boxes (M, 4) that may be equal and their levels (M,)."""
    order = np.lexsort((levels, *boxes.T[::-1]))
    boxes, levels = boxes[order], levels[order].astype(np.int32)
    new = np.ones(len(boxes), dtype=bool)
    new[1:] = (boxes[1:] != boxes[:-1]).any(axis=1)
    first = np.append(np.flatnonzero(new), len(boxes)).astype(np.int64)
    return Regions(boxes[new], levels[new], levels, first)


def check_image(image: Any) -> None:
    """Raise a ValueError for what cannot be searched."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        got = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"images must be uint8 arrays, got {got}")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"images must be (H, W, 3), got {image.shape}")
    height, width = image.shape[:2]
    if min(height, width) < 1 or max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise ValueError(
            f"images must have 1 to 2^26 pixels and sides up to {MAX_SIDE}, got {height} x {width}"
        )


def _cuda_search(
    images: list[np.ndarray],
    settings: SearchSettings,
    channel_order: str,
    ties: str,
    threads: int,
    device: torch.device,
) -> list[Regions]:
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"Selective Search cannot run on {device}: torch finds no GPU")
    if not extension.supports("selective_search", device, torch.float32):
        raise ValueError(f"Selective Search cannot run on {device}: the log says why")
    looked_at = {name for strategy in settings.strategies for name in strategy}
    textured = "texture" in looked_at
    jobs = [
        partial(color_planes, image, space, channel_order, settings.sigma, textured)
        for image in images
        for space in settings.color_spaces
    ]
    strategies = [[name in strategy for name in SIMILARITIES] for strategy in settings.strategies]
    search = CudaSearch(settings.k, settings.min_size, strategies, textured)
    spaces = len(settings.color_spaces)
    sizes = [image.shape[:2] for image in images for _ in range(spaces)]
    found = search_on_cuda(jobs, sizes, search, device, lambda some: _run(some, threads))
    of_images = [found[i : i + spaces] for i in range(0, len(found), spaces)]
    regions = []
    for image, of_image in zip(images, of_images, strict=True):
        if ties == "opencv" and any(one.ties for one in of_image):
            regions += _native_search([image], settings, channel_order, ties, threads)
        else:
            boxes = np.concatenate([one.boxes for one in of_image])
            levels = np.concatenate([one.levels for one in of_image])
            regions.append(_collected(boxes, levels))
    return regions


def _native_search(
    images: list[np.ndarray],
    settings: SearchSettings,
    channel_order: str,
    ties: str,
    threads: int,
) -> list[Regions]:
    native = extension.native()
    jobs: list[Callable[[], Any]] = []
    inner = max(1, threads // max(1, len(images) * len(settings.color_spaces)))
    for image in images:
        for space in settings.color_spaces:
            jobs.append(partial(_color_regions, image, space, settings, channel_order, ties, inner))
    regions = _run(jobs, threads)
    count = len(settings.color_spaces)
    of_image = [regions[i * count : (i + 1) * count] for i in range(len(images))]
    strategies = [[name in strategy for name in SIMILARITIES] for strategy in settings.strategies]
    found = native.selective_search_boxes(of_image, strategies, ties == "opencv", threads)
    return [
        Regions(boxes, all_levels[first[:-1]], all_levels, first)
        for boxes, all_levels, first, _ in found
    ]


def _run(jobs: list[Callable[[], Any]], threads: int) -> list[Any]:
    """Results of the jobs, which mostly run outside Python's lock."""
    if threads == 1 or len(jobs) == 1:
        return [job() for job in jobs]
    with ThreadPoolExecutor(min(threads, len(jobs))) as pool:
        return list(pool.map(lambda job: job(), jobs))


def _color_regions(
    image: np.ndarray,
    space: ColorSpace,
    settings: SearchSettings,
    channel_order: str,
    ties: str,
    threads: int,
) -> Any:
    """The first regions of one colour image, for every k."""
    similarities = {name for strategy in settings.strategies for name in strategy}
    values, smoothed, derivatives = color_planes(
        image, space, channel_order, settings.sigma, "texture" in similarities
    )
    return extension.native().selective_search_regions(
        values,
        smoothed,
        derivatives,
        list(settings.k),
        settings.min_size,
        "color" in similarities,
        opencv_fuses(),
        ties == "opencv",
        threads,
    )


def _opencv_regions(image: np.ndarray, settings: SearchSettings, channel_order: str) -> Regions:
    """OpenCV's search with the same settings; it does not tell the levels."""
    module = cv2.ximgproc.segmentation
    search = module.createSelectiveSearchSegmentation()
    for space in settings.color_spaces:
        search.addImage(convert(image, space, channel_order))
    for k in settings.k:
        search.addGraphSegmentation(
            module.createGraphSegmentation(float(np.float32(settings.sigma)), k, settings.min_size)
        )
    for strategy in settings.strategies:
        # OpenCV adds up in this order; floating-point sums depend on it.
        parts = [
            getattr(module, f"createSelectiveSearchSegmentationStrategy{name.capitalize()}")()
            for name in SIMILARITIES
            if name in strategy
        ]
        search.addStrategy(
            parts[0]
            if len(parts) == 1
            else module.createSelectiveSearchSegmentationStrategyMultiple(*parts)
        )
    boxes = np.unique(np.asarray(search.process(), dtype=np.float32).reshape(-1, 4), axis=0)
    boxes[:, 2:] += boxes[:, :2]
    return _collected(boxes, np.ones(len(boxes)))
