"""Selective Search on a GPU: edges, first regions, their statistics and the grouping.

All images of a call are searched at once: their pixels in parallel, and what has to go in order
(joining along sorted edges, merging the most similar pair) by one warp for each colour image or
grouping. So a GPU needs many images to be worth while. Colour conversion, smoothing and derivatives
are OpenCV's, on the CPU, for their rounding cannot be had elsewhere.

The boxes are those of the CPU with its own rule for ties; how often one came up is told, so that a
caller who wants OpenCV's rule knows which searches to do again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from predet.ops import extension
from predet.ops.color_images import ColorPlanes, opencv_fuses

MEMORY_SHARE = 0.8  # of the device's free memory that a part of the images may take


class CudaSearch(NamedTuple):
    """What is done with each colour image; see SearchSettings."""

    k: Sequence[float]
    min_size: int
    strategies: list[list[bool]]  # colour, fill, texture, size: what each looks at
    with_texture: bool

    def native(self) -> tuple:
        return (list(self.k), *self[1:], opencv_fuses())


class Found(NamedTuple):
    """What one colour image gave: M boxes, as often as they were made, and their levels."""

    boxes: np.ndarray  # (M, 4) float32
    levels: np.ndarray  # (M,) int32
    ties: int  # how often the order of equals has decided, or may have


def search_on_cuda(
    makers: Sequence[Callable[[], ColorPlanes]],
    sizes: Sequence[tuple[int, int]],
    search: CudaSearch,
    device: torch.device,
    run: Callable[[list[Callable[[], ColorPlanes]]], list[ColorPlanes]],
) -> list[Found]:
    """Search colour images, as many at a time as the device's memory holds.

    Args:
        makers: make the colour images.
        sizes: their heights and widths.
        search: the same for all.
        device: a GPU.
        run: calls the makers, in threads if it likes.

    Raises:
        ValueError: more than 16 values of k or strategies.
    """
    found: list[Found] = []
    for first, last in _parts(sizes, search, MEMORY_SHARE * free_bytes(device)):
        found += _search_part(run(list(makers[first:last])), search, device)
    return found


def free_bytes(device: torch.device) -> int:
    # What torch has set aside and does not use counts as taken: better a part too small.
    return torch.cuda.mem_get_info(device)[0]


def _parts(
    sizes: Sequence[tuple[int, int]], search: CudaSearch, limit: float
) -> Iterator[tuple[int, int]]:
    """First and last + 1 of images that fit together; one that is too large by itself is tried."""
    first, used = 0, 0
    for i, (height, width) in enumerate(sizes):
        bytes_of_search = extension.native().selective_search_cuda_bytes(
            [(height, width, 3)], search.native()
        )
        needed = sum(bytes_of_search) + 64 * height * width  # and the planes, at most
        if i > first and used + needed > limit:
            yield first, i
            first, used = i, 0
        used += needed
    if sizes:
        yield first, len(sizes)


def _search_part(
    planes: list[ColorPlanes], search: CudaSearch, device: torch.device
) -> list[Found]:
    native = extension.native()
    shapes = [one.values.shape for one in planes]
    output_bytes, workspace_bytes = native.selective_search_cuda_bytes(shapes, search.native())
    output = torch.empty(output_bytes, dtype=torch.uint8, device=device)
    workspace = torch.empty(workspace_bytes, dtype=torch.uint8, device=device)
    arrays = [_on(device, array) for one in planes for array in one]
    index, stream, _ = extension.place(output)
    addresses = [0 if x is None else x.data_ptr() for x in (*arrays, output, workspace)]
    native.selective_search_cuda(index, stream, shapes, search.native(), addresses)
    copied = output.cpu().numpy()  # waits for the search
    return [
        Found(*one) for one in native.selective_search_cuda_found(shapes, search.native(), copied)
    ]


def _on(device: torch.device, array: np.ndarray | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array).to(device)
