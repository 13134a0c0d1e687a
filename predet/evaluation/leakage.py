"""Test images that are also among the images of training: copies found by what they look like.

Every image is reduced to a perceptual hash of 64 bits (OpenCV's PHash: signs of the lowest
frequencies of the gray image), which survives re-compression and resizing; the test images also in
their mirror images. Pairs of near hashes are then compared by eye, so to speak: small gray versions
must correlate. The hash alone would call all photographs of one microscope the same.

What this does not find: crops, rotations by 90 degrees, and other photographs of the same scene.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import cv2
import numpy as np

from predet.data.dataset import DetectionDataset
from predet.data.images import BadSampleError, read_image

logger = logging.getLogger(__name__)

MAX_DISTANCE = 10  # bits of 64 in which the hashes of copies may differ
MIN_CORRELATION = 0.95  # of the small gray versions
SIZE = 48  # pixels, of the small versions
FLIPS = {"": None, "mirrored": 1, "upside down": 0, "rotated by 180 degrees": -1}


class Copy(NamedTuple):
    """A test image that is also in another set."""

    test_key: str
    set_name: str
    key: str
    how: str  # "" or one of `FLIPS`
    correlation: float


class LeakageReport(NamedTuple):
    """What was compared, and what was found; at most one copy for each test image and set."""

    test_images: int
    searched: dict[str, int]  # name of the set -> images
    unreadable: int
    copies: tuple[Copy, ...]


def find_copies(test: DetectionDataset, others: Mapping[str, DetectionDataset]) -> LeakageReport:
    """Search `others` for (near-)copies of the images of `test`.

    Args:
        test: the evaluation images.
        others: name -> images that training sees, labelled or not.
    """
    keys, hashes, hows, small, unreadable = _test_signatures(test)
    best: dict[tuple[str, str], Copy] = {}
    for name, dataset in others.items():
        for key, image in _images(dataset):
            if image is None:
                unreadable += 1
                continue
            own_hash, own = _hash(image), _small(image)
            near = np.flatnonzero(_distance(hashes, own_hash) <= MAX_DISTANCE)
            for index in near:
                correlation = float((small[index] * own).sum())
                known = best.get((keys[index], name))
                if correlation >= MIN_CORRELATION and (
                    known is None or correlation > known.correlation
                ):
                    best[keys[index], name] = Copy(keys[index], name, key, hows[index], correlation)
    if best:
        found = len({key for key, _ in best})
        logger.warning("%d test images have copies among the images of training", found)
    return LeakageReport(
        test_images=len(test),
        searched={name: len(dataset) for name, dataset in others.items()},
        unreadable=unreadable,
        copies=tuple(sorted(best.values())),
    )


def _test_signatures(
    test: DetectionDataset,
) -> tuple[list[str], np.ndarray, list[str], np.ndarray, int]:
    """Keys, hashes, flips and small versions: four of each readable test image."""
    keys: list[str] = []
    hows: list[str] = []
    hashes: list[np.uint64] = []
    small: list[np.ndarray] = []
    unreadable = 0
    for key, image in _images(test):
        if image is None:
            unreadable += 1
            continue
        for how, flip in FLIPS.items():
            shown = image if flip is None else cv2.flip(image, flip)
            keys.append(key)
            hows.append(how)
            hashes.append(_hash(shown))
            small.append(_small(shown))
    return keys, np.asarray(hashes, np.uint64), hows, np.asarray(small), unreadable


def _images(dataset: DetectionDataset) -> Iterator[tuple[str, np.ndarray | None]]:
    """Key and gray image; None for one that cannot be read."""
    for index in range(len(dataset)):
        record = dataset[index]
        try:
            yield record.key, cv2.cvtColor(read_image(record.path), cv2.COLOR_RGB2GRAY)
        except BadSampleError as error:
            logger.warning("not compared: %s", error)
            yield record.key, None


def _hash(gray: np.ndarray) -> np.uint64:
    return cv2.img_hash.pHash(gray).reshape(-1).view(np.uint64)[0]


def _small(gray: np.ndarray) -> np.ndarray:
    """The image at SIZE x SIZE, mean 0 and norm 1, so that products are correlations."""
    small = cv2.resize(gray, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.float32)
    small -= small.mean()
    return small / max(float(np.linalg.norm(small)), 1e-6)


def _distance(hashes: np.ndarray, other: np.uint64) -> np.ndarray:
    """Number of bits in which each of `hashes` differs from `other`."""
    if not len(hashes):
        return np.zeros(0, np.int64)
    bits = np.unpackbits((hashes ^ other).view(np.uint8).reshape(len(hashes), 8), axis=1)
    return bits.sum(axis=1, dtype=np.int64)
