"""Augmentation of images with boxes: DETR's recipe and its parts, on OpenCV.

An augmentation is a callable `(Sample, np.random.Generator) -> Sample`. It draws only from the
generator that it is given and never writes into the arrays that it is given. Images stay uint8;
normalisation is the model's work, on its device.

Deviation from DETR: OpenCV instead of Pillow. Enlarging, and shrinking down to a half, is bilinear
without a low-pass filter; shrinking below a half averages areas (at exactly a half the two agree).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np


class Sample(NamedTuple):
    """An image and its boxes, in the frame of this image."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    boxes: np.ndarray  # (N, 4) float32 absolute xyxy
    classes: np.ndarray  # (N,) int64
    source_rows: np.ndarray  # (N,) int64: which of the boxes at the start each of these is


Augmentation = Callable[[Sample, np.random.Generator], Sample]


def make_sample(image: np.ndarray, boxes: np.ndarray, classes: np.ndarray) -> Sample:
    """Start a sample: boxes clamped to the image, those left without area dropped."""
    sample = Sample(image, boxes.astype(np.float32), classes, np.arange(len(boxes)))
    return _with_boxes(sample, image, sample.boxes)


class Compose:
    """Apply `steps` one after the other."""

    def __init__(self, *, steps: Sequence[Augmentation]):
        self.steps = tuple(steps)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        for step in self.steps:
            sample = step(sample, rng)
        return sample


class ChooseOne:
    """Apply one of `options`, each as likely as the others."""

    def __init__(self, *, options: Sequence[Augmentation]):
        if not options:
            raise ValueError("ChooseOne needs at least one option, got none")
        self.options = tuple(options)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return self.options[rng.integers(len(self.options))](sample, rng)


class HorizontalFlip:
    """Mirror left and right with the given probability: x becomes width - x."""

    def __init__(self, *, probability: float = 0.5):
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must lie in [0, 1], got {probability}")
        self.probability = probability

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.probability:
            return sample
        boxes = sample.boxes[:, [2, 1, 0, 3]]
        boxes[:, [0, 2]] = sample.image.shape[1] - boxes[:, [0, 2]]
        return sample._replace(image=cv2.flip(sample.image, 1), boxes=boxes)


class ResizeShortSide:
    """Resize to a short side drawn from `short_sides` (pixels), with the size rule of DETR.

    With one short side this is the test-time resize.
    """

    def __init__(self, *, short_sides: Sequence[int], max_size: int | None = None):
        """Take the sizes.

        Args:
            max_size: Longest side allowed, in pixels; None for no limit.
        """
        if not short_sides or min(short_sides) < 1:
            raise ValueError(f"short_sides must be positive pixels, got {list(short_sides)}")
        if max_size is not None and max_size < 1:
            raise ValueError(f"max_size must be positive pixels or None, got {max_size}")
        self.short_sides, self.max_size = tuple(short_sides), max_size

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        short_side = self.short_sides[rng.integers(len(self.short_sides))]
        height, width = sample.image.shape[:2]
        size = resized_size(height, width, short_side=short_side, max_size=self.max_size)
        return resize(sample, *size)


class RandomCrop:
    """Crop a window whose height and width are drawn on their own, anywhere in the image.

    Each side is uniform over the whole numbers in [min_size, min(side of the image, max_size)]; an
    image side below `min_size` is kept whole. Boxes are cut at the window; those without area in
    it are dropped, with no rule about their centres.
    """

    def __init__(self, *, min_size: int, max_size: int):
        if not 1 <= min_size <= max_size:
            raise ValueError(f"expected 1 <= min_size <= max_size, got {min_size} and {max_size}")
        self.min_size, self.max_size = min_size, max_size

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        top, bottom = self._draw_range(sample.image.shape[0], rng)
        left, right = self._draw_range(sample.image.shape[1], rng)
        boxes = sample.boxes - np.array([left, top, left, top], np.float32)
        return _with_boxes(sample, sample.image[top:bottom, left:right], boxes)

    def _draw_range(self, side: int, rng: np.random.Generator) -> tuple[int, int]:
        low, high = min(self.min_size, side), min(self.max_size, side)
        length = int(rng.integers(low, high, endpoint=True))
        start = int(rng.integers(side - length, endpoint=True))
        return start, start + length


class DETRAugmentation(Compose):
    """DETR's training augmentation (arXiv 2005.12872, section 4 and the published code).

    Flip with probability 0.5. Then, each with probability 0.5, either resize; or resize the short
    side to one of `crop_short_sides` with no limit, crop, and resize. Smaller images need only
    other numbers: for 128 pixels all may be divided by six.
    """

    def __init__(
        self,
        *,
        short_sides: Sequence[int] = tuple(range(480, 801, 32)),
        max_size: int | None = 1333,
        crop_short_sides: Sequence[int] = (400, 500, 600),
        crop_size: tuple[int, int] = (384, 600),
        flip_probability: float = 0.5,
    ):
        """Take the sizes, all in pixels.

        Args:
            crop_size: Least and greatest side of the crop.
        """
        resize_last = ResizeShortSide(short_sides=short_sides, max_size=max_size)
        crop = Compose(
            steps=[
                ResizeShortSide(short_sides=crop_short_sides),
                RandomCrop(min_size=crop_size[0], max_size=crop_size[1]),
                resize_last,
            ]
        )
        flip = HorizontalFlip(probability=flip_probability)
        super().__init__(steps=[flip, ChooseOne(options=[resize_last, crop])])


def resized_size(
    height: int, width: int, *, short_side: int, max_size: int | None
) -> tuple[int, int]:
    """DETR's size rule -> (height, width) in pixels.

    Where the long side would exceed `max_size`, the short side becomes
    round(max_size * short / long). The long side is the short one times the aspect ratio, cut to a
    whole number; after that rounding it can end some pixels beside `max_size`, on either side.
    """
    short, long = min(height, width), max(height, width)
    if max_size is not None and long / short * short_side > max_size:
        short_side = max(1, round(max_size * short / long))
    long_side = int(short_side * long / short)
    return (short_side, long_side) if height <= width else (long_side, short_side)


def resize(sample: Sample, height: int, width: int) -> Sample:
    """Resize image and boxes to the given size in pixels."""
    old_height, old_width = sample.image.shape[:2]
    if (height, width) == (old_height, old_width):
        return sample
    shrunk = min(height / old_height, width / old_width)
    image = cv2.resize(
        sample.image,
        (width, height),
        interpolation=cv2.INTER_AREA if shrunk < 0.5 else cv2.INTER_LINEAR,
    )
    scale = np.array([width / old_width, height / old_height] * 2, np.float32)
    return _with_boxes(sample, image, sample.boxes * scale)


def _with_boxes(sample: Sample, image: np.ndarray, boxes: np.ndarray) -> Sample:
    """Put a new image and boxes in its frame; clamp the boxes, drop those left without area."""
    height, width = image.shape[:2]
    boxes = np.clip(boxes, 0, np.array([width, height] * 2, np.float32))
    kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return Sample(image, boxes[kept], sample.classes[kept], sample.source_rows[kept])
