"""Where the boxes of pre-training come from: the first of the two choices of pre-training.

A box source is asked for the boxes of an image each time that the image is read. Its draws come
from the generator that it is given, a function of seed, epoch and image: every epoch sees new
boxes, and a run that was killed sees the same ones again.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from predet.data.box_picks import Pick
from predet.data.dataset import DetectionDataset, Record
from predet.data.images import BadSampleError
from predet.data.region_search import RegionSearch, warn_without_levels
from predet.ops.selective_search import Regions, rank

Boxes = tuple[np.ndarray, np.ndarray]  # (N, 4) float32 absolute xyxy and (N,) int64 classes


class BoxSource(Protocol):
    """A picklable callable that gives the boxes of an image.

    Attributes:
        num_boxes: how many boxes an image should get; None if that is open. An image that has
            fewer gets fewer, which the loader counts.
    """

    @property
    def num_boxes(self) -> int | None: ...

    def check(self, dataset: DetectionDataset) -> None:
        """Look at the images before training begins.

        Raises:
            ValueError: this source cannot serve them.
        """

    def __call__(self, image: np.ndarray, record: Record, rng: np.random.Generator) -> Boxes:
        """The boxes of one image.

        Args:
            image: (H, W, 3) uint8 RGB, as it is on disk; not to be written to.
            record: what the data set knows of it.
            rng: what every draw comes from.

        Returns:
            (N, 4) float32 absolute xyxy in the frame of `image`, and (N,) int64 classes.

        Raises:
            BadSampleError: the image cannot have such boxes; the loader's policy decides.
        """


class AnnotatedBoxes:
    """The boxes and classes of the data set, but those of crowds.

    They are people's annotations, or those of a box store by `predet.data.pseudo_labels`.
    """

    num_boxes = None

    def check(self, dataset: DetectionDataset) -> None:
        if not len(dataset.boxes):
            raise ValueError(
                f"data set {dataset.name!r} ({dataset.root}) has no annotations, but its own boxes "
                "are asked for: give it those of a box store, or choose another box source"
            )

    def __call__(self, image: np.ndarray, record: Record, rng: np.random.Generator) -> Boxes:
        kept = ~record.iscrowd
        return record.boxes[kept], record.classes[kept]


class RandomPatches:
    """Boxes at random places (UP-DETR, arXiv 2011.09094, section 3.1; sizes as in its code).

    Width and height are uniform over the whole numbers in [min_side, side of the image - min_side],
    each on its own; then the corner is uniform over where the box fits with a pixel to spare.
    Classes are all 0.

    Args:
        num_patches: boxes of an image.
        min_side: least side in pixels of the image on disk. An image with a side of at most twice
            that is refused.
    """

    def __init__(self, *, num_patches: int = 10, min_side: int = 8):
        if num_patches < 1:
            raise ValueError(f"num_patches must be at least 1, got {num_patches}")
        if min_side < 1:
            raise ValueError(f"min_side must be at least one pixel, got {min_side}")
        self.num_patches, self.min_side = num_patches, min_side

    @property
    def num_boxes(self) -> int:
        return self.num_patches

    def check(self, dataset: DetectionDataset) -> None:
        """Any images will do; those that are too small are met when they are read."""

    def __call__(self, image: np.ndarray, record: Record, rng: np.random.Generator) -> Boxes:
        height, width = image.shape[:2]
        if min(height, width) <= 2 * self.min_side:
            raise BadSampleError(
                f"{record.path}: too small for random patches: {width}x{height} pixels, both sides "
                f"must be over {2 * self.min_side} for patches of at least {self.min_side}"
            )
        limits = np.array([width, height])
        sides = rng.integers(
            self.min_side, limits - self.min_side, (self.num_patches, 2), endpoint=True
        )
        corners = rng.integers(0, limits - sides)  # below the limit: a pixel to spare
        return without_classes(np.concatenate([corners, corners + sides], axis=1))


class SelectiveSearchRegions:
    """Regions of Selective Search, searched when the image is read (DETReg, arXiv 2106.04550).

    OpenCV's order, random x level, is drawn anew each time, so an image has other boxes in every
    epoch; DETReg trains so. Classes are all 0.

    Args:
        search: how; DETReg's way by default.
        pick: which of the ranked regions are taken.
    """

    def __init__(self, *, search: RegionSearch, pick: Pick):
        self.search, self.pick = search, pick

    @property
    def num_boxes(self) -> int:
        return self.pick.k

    def check(self, dataset: DetectionDataset) -> None:
        """Any images will do."""
        warn_without_levels()

    def __call__(self, image: np.ndarray, record: Record, rng: np.random.Generator) -> Boxes:
        return take_ranked(self.search.regions(image, name=record.path), self.pick, rng)


def take_ranked(regions: Regions, pick: Pick, rng: np.random.Generator) -> Boxes:
    """Draw the order of regions, then which of them are taken. All classes are 0."""
    boxes = regions.boxes[rank(regions, rng)]
    return without_classes(boxes[pick(len(boxes), rng)])


def without_classes(boxes: np.ndarray) -> Boxes:
    """Boxes (N, 4) of any number type, all of class 0."""
    return boxes.astype(np.float32), np.zeros(len(boxes), np.int64)
