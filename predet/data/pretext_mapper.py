"""From a record to a sample of pre-training: an image, boxes from any source, and their patches.

An image keeps its place in the batch whatever boxes it has; where the published code resamples,
boxes are missing and counted (docs/decisions/0015-missing-boxes.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch

from predet.data.augmentation import Augmentation, make_sample
from predet.data.box_sources import BoxSource
from predet.data.dataset import DetectionDataset, Record
from predet.data.images import read_image
from predet.data.mapper import batch_dict, check_size, to_chw_tensor
from predet.data.views import Photometric


class PatchMaker:
    """Cut boxes out of an image and resize them to squares, whatever their shape.

    UP-DETR's query patches and DETReg's crops for its frozen encoder are made so.

    Args:
        size: side of the patches in pixels.
        photometric: what is done to the pixels of each patch after that, in order.
    """

    def __init__(self, *, size: int = 128, photometric: Sequence[Photometric] = ()):
        if size < 1:
            raise ValueError(f"size must be at least one pixel, got {size}")
        self.size, self.photometric = size, tuple(photometric)

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, rng: np.random.Generator
    ) -> torch.Tensor:
        """Cut out `boxes` (N, 4), absolute xyxy in the frame of `image`, at whole pixels.

        Returns:
            (N, 3, size, size) uint8 RGB.
        """
        patches = torch.empty((len(boxes), 3, self.size, self.size), dtype=torch.uint8)
        for patch, box in zip(patches, boxes, strict=True):
            pixels = _resize(_cut(image, box), self.size)
            for change in self.photometric:
                pixels = change(pixels, rng)
            patch.copy_(to_chw_tensor(pixels))
        return patches


class PretextMapper:
    """Read an image, ask for its boxes, augment both, cut the patches. Picklable, without state.

    Args:
        augmentation: of the image and its boxes.
        boxes: where boxes and classes come from.
        patches: makes the patches that a method looks at, or None for none. They are cut out of
            the image on disk, by the boxes before augmentation: an image that is mirrored or
            resized has the same patches.
    """

    def __init__(
        self, *, augmentation: Augmentation, boxes: BoxSource, patches: PatchMaker | None = None
    ):
        self.augmentation, self.boxes, self.patches = augmentation, boxes, patches

    @property
    def provenance(self) -> dict[str, str]:
        """What the boxes of a run hang on besides its config: the store, if they are in one."""
        return getattr(self.boxes, "provenance", {})

    def check(self, dataset: DetectionDataset) -> None:
        """Look at the images before training begins; the train loader calls it.

        Raises:
            ValueError: the box source cannot serve them.
        """
        self.boxes.check(dataset)

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, Any]:
        """Map one record.

        Returns:
            What `DetectionMapper` returns; "boxes_missing": how many boxes fewer than asked for
            the source gave, for the loader to count; and, with a patch maker, "patches":
            (N, 3, S, S) uint8 RGB, row i that of `instances[i]`. Boxes that the augmentation cuts
            off are in neither.

        Raises:
            BadSampleError: The file cannot be read, its size is not the annotated one, or the
                source has no boxes for such an image.
        """
        image = read_image(record.path)
        check_size(record, *image.shape[:2])
        boxes, classes = self.boxes(image, record, rng)
        sample = self.augmentation(make_sample(image, boxes, classes), rng)
        item = batch_dict(record, image, sample)
        item["boxes_missing"] = max(0, (self.boxes.num_boxes or 0) - len(boxes))
        if self.patches is not None:
            item["patches"] = self.patches(image, boxes[sample.source_rows], rng)
        return item


def _cut(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The pixels of a box, its borders rounded; at least one pixel."""
    limits = np.array(image.shape[1::-1])
    start = np.clip(np.rint(box[:2]).astype(np.int64), 0, limits - 1)
    end = np.clip(np.rint(box[2:]).astype(np.int64), start + 1, limits)
    return image[start[1] : end[1], start[0] : end[0]]


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    """To a square. A side that shrinks below a half is averaged, each on its own.

    OpenCV averages areas only if neither side grows; a long, thin box would come out jagged.
    """
    height, width = image.shape[:2]
    shrunk = (size if width > 2 * size else width, size if height > 2 * size else height)
    if shrunk != (width, height):
        image = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA)
    if shrunk != (size, size):
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return image
