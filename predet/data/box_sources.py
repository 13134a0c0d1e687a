"""Where the boxes of pre-training come from: the first of the two choices of pre-training.

A box source is asked for the boxes of an image each time that the image is read. Its draws come
from the generator that it is given, a function of seed, epoch and image: every epoch sees new
boxes, and a run that was killed sees the same ones again.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from predet.data.dataset import Record
from predet.data.images import BadSampleError

Boxes = tuple[np.ndarray, np.ndarray]  # (N, 4) float32 absolute xyxy and (N,) int64 classes


class BoxSource(Protocol):
    """A picklable callable that gives the boxes of an image.

    Attributes:
        num_boxes: how many boxes an image should get; None if that is open. A source may give
            fewer, where there are no more.
        needs_annotations: whether it is of use only with a data set that has boxes.
    """

    @property
    def num_boxes(self) -> int | None: ...

    @property
    def needs_annotations(self) -> bool: ...

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
    needs_annotations = True

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

    needs_annotations = False

    def __init__(self, *, num_patches: int = 10, min_side: int = 8):
        if num_patches < 1:
            raise ValueError(f"num_patches must be at least 1, got {num_patches}")
        if min_side < 1:
            raise ValueError(f"min_side must be at least one pixel, got {min_side}")
        self.num_patches, self.min_side = num_patches, min_side

    @property
    def num_boxes(self) -> int:
        return self.num_patches

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
        return _without_classes(np.concatenate([corners, corners + sides], axis=1))


def _without_classes(boxes: np.ndarray) -> Boxes:
    return boxes.astype(np.float32), np.zeros(len(boxes), np.int64)
