"""The colour images that Selective Search looks at, and what OpenCV's filters make of them.

All of it is done by OpenCV, whose rounding could not be repeated to the last bit otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple

import cv2
import numpy as np

ColorSpace = Literal["hsv", "lab", "gray", "blue", "hue", "rgi"]


class ColorPlanes(NamedTuple):
    """One colour image."""

    values: np.ndarray  # (H, W, C) uint8
    smoothed: np.ndarray  # (H, W, C) float32
    derivatives: np.ndarray | None  # (C, 4, H, W) float32


def color_planes(
    image: np.ndarray, space: ColorSpace, channel_order: str, sigma: float, with_texture: bool
) -> ColorPlanes:
    """All that a search needs of an image (H, W, 3) uint8 in one colour space."""
    values = convert(image, space, channel_order)
    by_direction = derivatives(values) if with_texture else None
    values = np.ascontiguousarray(values.reshape(*values.shape[:2], -1))
    return ColorPlanes(values, smooth(values, sigma), by_direction)


def convert(image: np.ndarray, space: ColorSpace, channel_order: str) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W, 3), or (H, W) of the spaces with one channel; uint8."""
    return CONVERSIONS[space](image, channel_order == "bgr")


def smooth(values: np.ndarray, sigma: float) -> np.ndarray:
    """(H, W, C) uint8 -> (H, W, C) float32, smoothed as OpenCV's graph segmentation does it."""
    sigma = float(np.float32(sigma))  # OpenCV's parameter is a float
    smoothed = cv2.GaussianBlur(values.astype(np.float32), (0, 0), sigma, sigmaY=sigma)
    return smoothed.reshape(values.shape)


def derivatives(values: np.ndarray) -> np.ndarray:
    """Scharr derivatives in four directions: (H, W[, C]) uint8 -> (C, 4, H, W) float32.

    In x and y of the image, and of the image turned by 45 degrees, turned back.
    """
    height, width = values.shape[:2]
    planes = cv2.split(values)
    result = np.empty((len(planes), 4, height, width), dtype=np.float32)
    center = (width / 2, height / 2)
    turn = cv2.getRotationMatrix2D(center, 45.0, 1.0)
    box = cv2.RotatedRect(center, (width, height), 45.0).boundingRect()
    turn[:, 2] += (box[2] / 2 - center[0], box[3] / 2 - center[1])
    turned_size = (box[2], box[3])
    turned_center = (box[2] // 2, box[3] // 2)
    turn_back = cv2.getRotationMatrix2D(turned_center, -45.0, 1.0)
    whole = cv2.RotatedRect(turned_center, turned_size, -45.0).boundingRect()
    left, top = max(0, (box[2] - width) // 2), max(0, (box[3] - height) // 2)
    # OpenCV turns back more than it then cuts out. The columns past a multiple of 64 may be rounded
    # differently from the others, so the cut must not put them elsewhere.
    columns = -(-(left + width) // 64) * 64
    columns, rows = (columns, top + height) if columns + 64 <= whole[2] else (whole[2], whole[3])
    # The same memory for all planes: new pages cost more than the filters.
    turned = derivative = back = None
    for plane, of_plane in zip(planes, result, strict=True):
        turned = cv2.warpAffine(plane, turn, turned_size, dst=turned)
        for axis in range(2):
            cv2.Scharr(plane, cv2.CV_32F, 1 - axis, axis, dst=of_plane[axis])
            derivative = cv2.Scharr(turned, cv2.CV_32F, 1 - axis, axis, dst=derivative)
            back = cv2.warpAffine(derivative, turn_back, (columns, rows), dst=back)
            of_plane[2 + axis] = back[top : top + height, left : left + width]
    return result


@cache
def opencv_fuses() -> bool:
    """Whether OpenCV scales to bytes with fused multiply-adds on this processor.

    Of the numbers from -1200 to 0, scaled to 0 .. 255, some come to lie half-way between two bytes;
    which way they go tells.
    """
    values = np.arange(-1200, 1, dtype=np.float32)
    scaled = cv2.normalize(values, None, 0, 255, cv2.NORM_MINMAX, dtype=cv2.CV_8U).ravel()
    factor = np.float32(255 / 1200)
    rounded_twice = np.rint(values * factor + np.float32(255))
    # In fp64 the product of two fp32 numbers is exact.
    rounded_once = np.rint((values.astype(np.float64) * factor + 255).astype(np.float32))
    assert not np.array_equal(rounded_once, rounded_twice)
    return np.array_equal(scaled, rounded_once)


def _hsv(image: np.ndarray, swapped: bool) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_BGR2HSV if swapped else cv2.COLOR_RGB2HSV)


def _lab(image: np.ndarray, swapped: bool) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_BGR2Lab if swapped else cv2.COLOR_RGB2Lab)


def _gray(image: np.ndarray, swapped: bool) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY if swapped else cv2.COLOR_RGB2GRAY)


def _hue(image: np.ndarray, swapped: bool) -> np.ndarray:
    return np.ascontiguousarray(_hsv(image, swapped)[..., 0])


def _blue(image: np.ndarray, swapped: bool) -> np.ndarray:
    return np.ascontiguousarray(image[..., 0 if swapped else 2])


def _rgi(image: np.ndarray, swapped: bool) -> np.ndarray:
    """Red, green and intensity."""
    red = image[..., 2 if swapped else 0]
    return np.dstack([red, image[..., 1], _gray(image, swapped)])


CONVERSIONS: dict[str, Callable[[np.ndarray, bool], np.ndarray]] = {
    "hsv": _hsv,
    "lab": _lab,
    "gray": _gray,
    "blue": _blue,
    "hue": _hue,
    "rgi": _rgi,
}
