"""Selective Search of an image at a size of one's choice, its boxes in the frame of the image.

What is searched is a copy of the image of another size; what makes two searches the same is what
`RegionSearch.parameters` tells, which is written into stores and compared with them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import cv2
import numpy as np
import torch

from predet.data.images import BadSampleError
from predet.ops import extension, selective_search
from predet.ops.selective_search import Mode, Regions, mode_settings

logger = logging.getLogger(__name__)


class RegionSearch:
    """How an image is searched. The defaults are DETReg's: red and blue are swapped as in its code.

    Args:
        mode: OpenCV's choice of colour spaces, sizes and strategies.
        resize: "WIDTHxHEIGHT" ignores the aspect ratio; "MAX_SIDE" shrinks larger images, keeping
            it; "off" searches the image as it is.
        channel_order: "bgr" swaps red and blue before the search, "rgb" does not.
        base_k, inc_k: first k and step of k; None is the mode's.
        sigma: standard deviation of the smoothing, in pixels of the resized image.
        min_size: least pixels of a first region, in the resized image.

    Raises:
        ValueError: settings that are not possible.
    """

    def __init__(
        self,
        *,
        mode: Mode = "fast",
        resize: str = "128x128",
        channel_order: Literal["rgb", "bgr"] = "bgr",
        base_k: float | None = None,
        inc_k: float = 150,
        sigma: float = 0.8,
        min_size: int = 100,
    ):
        if channel_order not in ("rgb", "bgr"):
            raise ValueError(f"channel_order must be 'rgb' or 'bgr', got {channel_order!r}")
        settings = mode_settings(mode, base_k=base_k, inc_k=inc_k)
        self.settings = replace(settings, sigma=sigma, min_size=min_size)
        self.mode, self.resize, self.channel_order = mode, str(resize), channel_order
        self.size, self.max_side = _parse_resize(self.resize)

    @property
    def method(self) -> str:
        """What a store calls it."""
        return f"selective_search-{self.mode}"

    @property
    def parameters(self) -> dict[str, Any]:
        """All that changes the boxes, in types of JSON."""
        settings = asdict(self.settings)
        settings["color_spaces"] = list(settings["color_spaces"])
        settings["k"] = list(settings["k"])
        settings["strategies"] = [list(strategy) for strategy in settings["strategies"]]
        return {**settings, "resize": self.resize, "channel_order": self.channel_order}

    def resized(self, image: np.ndarray, *, name: str) -> np.ndarray:
        """The image as it is searched: (H, W, 3) uint8 -> (h, w, 3).

        Raises:
            BadSampleError: too large to be searched; names `name`.
        """
        small = self._resized(image)
        try:
            selective_search.check_image(small)
        except ValueError as error:
            raise BadSampleError(f"{name}: {error}") from error
        return small

    def search(
        self,
        images: Sequence[np.ndarray],
        *,
        device: str | torch.device = "cpu",
        threads: int = 1,
    ) -> list[Regions]:
        """The regions of resized images, each in the frame of the resized image."""
        return selective_search.selective_search(
            images,
            settings=self.settings,
            channel_order=self.channel_order,
            threads=threads,
            device=device,
        )

    def regions(self, image: np.ndarray, *, name: str) -> Regions:
        """The regions of an image, in its own frame.

        Raises:
            BadSampleError: too large to be searched; names `name`.
        """
        small = self.resized(image, name=name)
        return in_frame(self.search([small])[0], small.shape[:2], image.shape[:2])

    def _resized(self, image: np.ndarray) -> np.ndarray:
        if self.size is not None:
            return cv2.resize(image, self.size, interpolation=cv2.INTER_LINEAR)
        height, width = image.shape[:2]
        if self.max_side is None or max(height, width) <= self.max_side:
            return image
        scale = self.max_side / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def in_frame(regions: Regions, searched: tuple[int, int], original: tuple[int, int]) -> Regions:
    """Regions of an image of `searched` (height, width) in the frame of one of `original`."""
    scale = np.float32([original[1] / searched[1], original[0] / searched[0]] * 2)
    return regions._replace(boxes=regions.boxes * scale)


def warn_without_levels() -> None:
    """Say in the log what a search without the native extension does not tell."""
    if not extension.available("selective_search"):
        logger.warning(
            "without the native extension Selective Search tells no levels: each order of its "
            "regions is as likely as the others"
        )


def _parse_resize(resize: str) -> tuple[tuple[int, int] | None, int | None]:
    """(width, height) or None, and the longest side or None."""
    if resize == "off":
        return None, None
    sides = resize.split("x")
    if not 1 <= len(sides) <= 2 or not all(s.isdecimal() and int(s) > 0 for s in sides):
        raise ValueError(f"resize takes WIDTHxHEIGHT, MAX_SIDE or off, got {resize!r}")
    numbers = [int(side) for side in sides]
    return ((numbers[0], numbers[1]), None) if len(numbers) == 2 else (None, numbers[0])
