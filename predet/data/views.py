"""Random views of an image for self-supervised training, on OpenCV, each with its geometry.

A view is a crop of the image, resized, perhaps mirrored, then changed in colour and sharpness. It
knows where it was cut: `View.to_view` maps points of the original image into it, so that losses
on places and boxes can be carried from one view to another. Coordinates are continuous pixels, as
those of boxes: (0, 0) is the corner of the first pixel, its centre is (0.5, 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from predet.data.dataset import Record
from predet.data.images import read_image
from predet.data.mapper import to_chw_tensor

# Image (H, W, 3) uint8 RGB -> the same size; draws only from the generator that it is given.
Photometric = Callable[[np.ndarray, np.random.Generator], np.ndarray]

_GRAY = np.array([0.299, 0.587, 0.114])  # luma of RGB
# Rows: luma and the two colour differences of YIQ. Turning the latter changes the hue.
_YIQ = np.array([_GRAY, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_YIQ_TO_RGB = np.linalg.inv(_YIQ)


class View(NamedTuple):
    """A view and where it comes from."""

    image: np.ndarray  # (S, S, 3) uint8 RGB
    to_view: np.ndarray  # (2, 3) float64: (x, y, 1) of the original image -> (x, y) of the view


class RandomView:
    """Cut a random window out of an image, resize it to a square, mirror it, change its colours.

    The window has a share of the image's area drawn from `area` and an aspect ratio drawn
    log-uniformly from `aspect`; after ten windows that do not fit, the whole image is taken. An
    image smaller than `size` is enlarged.

    Args:
        size: side of the view in pixels.
        area: least and greatest share of the image's area.
        aspect: least and greatest width / height of the window.
        flip_probability: of mirroring left and right.
        photometric: what is done to the pixels after that, in order.
    """

    def __init__(
        self,
        *,
        size: int,
        area: tuple[float, float] = (0.2, 1.0),
        aspect: tuple[float, float] = (3 / 4, 4 / 3),
        flip_probability: float = 0.5,
        photometric: Sequence[Photometric] = (),
    ):
        if size < 1:
            raise ValueError(f"size must be at least one pixel, got {size}")
        if not 0 < area[0] <= area[1] <= 1:
            raise ValueError(f"area: expected 0 < least <= greatest <= 1, got {tuple(area)}")
        if not 0 < aspect[0] <= aspect[1]:
            raise ValueError(f"aspect: expected 0 < least <= greatest, got {tuple(aspect)}")
        _check_probability("flip_probability", flip_probability)
        self.size, self.area, self.aspect = size, tuple(area), tuple(aspect)
        self.flip_probability, self.photometric = flip_probability, tuple(photometric)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> View:
        """(H, W, 3) uint8 RGB -> a view; `image` is not written to."""
        left, top, width, height = self._draw_window(*image.shape[:2], rng)
        shrunk = self.size / max(width, height)
        view = cv2.resize(
            image[top : top + height, left : left + width],
            (self.size, self.size),
            interpolation=cv2.INTER_AREA if shrunk < 0.5 else cv2.INTER_LINEAR,
        )
        scale_x, scale_y = self.size / width, self.size / height
        to_view = np.array([[scale_x, 0, -left * scale_x], [0, scale_y, -top * scale_y]])
        if rng.random() < self.flip_probability:
            view = cv2.flip(view, 1)
            to_view[0] = [-scale_x, 0, self.size + left * scale_x]
        for change in self.photometric:
            view = change(view, rng)
        return View(view, to_view)

    def _draw_window(
        self, image_height: int, image_width: int, rng: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """Left, top, width and height in whole pixels."""
        low, high = math.log(self.aspect[0]), math.log(self.aspect[1])
        for _ in range(10):
            area = rng.uniform(*self.area) * image_height * image_width
            aspect = math.exp(rng.uniform(low, high))
            width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < width <= image_width and 0 < height <= image_height:
                left = int(rng.integers(image_width - width, endpoint=True))
                top = int(rng.integers(image_height - height, endpoint=True))
                return left, top, width, height
        return 0, 0, image_width, image_height


class ColorJitter:
    """Change brightness, contrast, saturation and hue with one linear map of the colours.

    Factors are uniform in [1 - x, 1 + x]. Contrast stretches about the mean luma of the image; the
    hue is turned in the YIQ plane. Everything is one matrix, so values are cut to 0..255 once, at
    the end, and the cost is that of one pass.

    Args:
        brightness, contrast, saturation: x of each factor, in [0, 1].
        hue: largest turn in either direction, in parts of a whole turn, in [0, 0.5].
        probability: of doing it at all.
        gray_probability: of taking all colour away, drawn on its own.
    """

    def __init__(
        self,
        *,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.2,
        hue: float = 0.05,
        probability: float = 0.8,
        gray_probability: float = 0.1,
    ):
        for name, value, most in (
            ("brightness", brightness, 1.0),
            ("contrast", contrast, 1.0),
            ("saturation", saturation, 1.0),
            ("hue", hue, 0.5),
        ):
            if not 0 <= value <= most:
                raise ValueError(f"ColorJitter: {name} must lie in [0, {most:g}], got {value}")
        _check_probability("probability", probability)
        _check_probability("gray_probability", gray_probability)
        self.factors, self.hue = (brightness, contrast, saturation), hue
        self.probability, self.gray_probability = probability, gray_probability

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        matrix = np.eye(3)
        offset = 0.0
        if rng.random() < self.probability:
            brightness, contrast, saturation = (1 + rng.uniform(-x, x) for x in self.factors)
            angle = 2 * math.pi * rng.uniform(-self.hue, self.hue)
            mean = brightness * float(_GRAY @ cv2.mean(image)[:3])
            offset = (1 - contrast) * mean
            matrix = brightness * contrast * _saturate(saturation) @ _turn_hue(angle)
        if rng.random() < self.gray_probability:
            matrix = _saturate(0.0) @ matrix
        elif offset == 0 and (matrix == np.eye(3)).all():
            return image
        return cv2.transform(image, np.column_stack([matrix, [offset] * 3]))


class RandomBlur:
    """Blur by a Gaussian whose standard deviation is drawn from `sigma` (pixels)."""

    def __init__(self, *, sigma: tuple[float, float] = (0.1, 2.0), probability: float = 0.5):
        if not 0 < sigma[0] <= sigma[1]:
            raise ValueError(f"sigma: expected 0 < least <= greatest, got {tuple(sigma)}")
        _check_probability("probability", probability)
        self.sigma, self.probability = tuple(sigma), probability

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.probability:
            return image
        return cv2.GaussianBlur(image, (0, 0), rng.uniform(*self.sigma))


class MultiViewMapper:
    """Read one image and make several views of it. Picklable; holds no state between calls.

    Args:
        views: one maker a view, at least two. They may make views of different sizes.
    """

    def __init__(self, *, views: Sequence[RandomView]):
        if len(views) < 2:
            raise ValueError(f"self-supervised training needs two or more views, got {len(views)}")
        self.views = tuple(views)

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, Any]:
        """Map one record; its annotations are not looked at.

        Returns:
            "views": a list of {"image": (3, S, S) uint8 RGB, "to_view": (2, 3) float64}; "image":
            that of the first view, for tools that show batches; "height", "width": pixels of the
            image on disk; "image_id"; "file_name"; "key".

        Raises:
            BadSampleError: The file cannot be read.
        """
        image = read_image(record.path)
        made = [make(image, rng) for make in self.views]
        views = [
            {"image": to_chw_tensor(view.image), "to_view": torch.from_numpy(view.to_view)}
            for view in made
        ]
        return {
            "image": views[0]["image"],
            "views": views,
            "height": image.shape[0],
            "width": image.shape[1],
            "image_id": record.image_id,
            "file_name": record.path,
            "key": record.key,
        }


def _saturate(factor: float) -> np.ndarray:
    """(3, 3): 0 gives gray, 1 changes nothing; the luma stays."""
    return factor * np.eye(3) + (1 - factor) * np.tile(_GRAY, (3, 1))


def _turn_hue(angle: float) -> np.ndarray:
    """(3, 3): turns the colours by `angle` (radians) about the axis of grays; the luma stays."""
    cos, sin = math.cos(angle), math.sin(angle)
    return _YIQ_TO_RGB @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")
