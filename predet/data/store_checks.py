"""Whether a box store fits the images that it is used with, found out before training begins."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from predet.data.box_store import BoxStore, ScoreColumns
from predet.data.dataset import DetectionDataset
from predet.data.images import BadSampleError, read_image_size

logger = logging.getLogger(__name__)

_SAMPLED = 32  # images whose files are looked at where the data set does not tell their sizes


def skipped_images(dataset: DetectionDataset, store: BoxStore) -> list[int]:
    """Images of `dataset` that could not be read when the store was made: they have no row.

    Raises:
        ValueError: an image is missing for another reason.
    """
    root = store.meta["image_root"]
    if root and os.path.realpath(root) != os.path.realpath(dataset.root):
        logger.warning(
            "box store %s was made from images in %s, used for those in %s",
            store.path,
            root,
            dataset.root,
        )
    keys = dataset.keys()
    absent = [index for index, key in enumerate(keys) if key not in store]
    if not absent:
        return []
    skipped = store.skipped
    unknown = [keys[index] for index in absent if keys[index] not in skipped]
    if unknown:
        raise ValueError(
            f"box store {store.path} lacks {len(unknown)} of the {len(dataset)} images of "
            f"{dataset.name}, the first is '{unknown[0]}' (the store has '{store.keys[0]}', ...): "
            "was it made from other images, or relative to another folder?"
        )
    logger.warning(
        "%d images are left out, skipped when box store %s was made: the first is %s (%s)",
        len(absent),
        store.path,
        keys[absent[0]],
        skipped[keys[absent[0]]],
    )
    return absent


def rows_of(
    dataset: DetectionDataset, store: BoxStore
) -> Iterator[tuple[ScoreColumns, np.ndarray]]:
    """The store's rows but for the boxes, and for each row the image's index in `dataset` or -1."""
    index_of = {key: index for index, key in enumerate(dataset.keys())}
    for columns in store.scores():
        yield columns, np.array([index_of.get(key, -1) for key in columns.keys], np.int64)


def check_sizes(
    dataset: DetectionDataset, store: BoxStore, heights: np.ndarray, widths: np.ndarray
) -> None:
    """Compare the sizes that the store tells with those of the data set; 0 is unknown in either.

    Args:
        heights, widths: (images of the data set,) pixels in the store.

    Raises:
        ValueError: an image has another size.
    """
    known = (dataset.heights > 0) & (heights > 0)
    other = known & ((dataset.heights != heights) | (dataset.widths != widths))
    if other.any():
        first = int(other.argmax())
        raise _other_images(
            f"{other.sum()} differ in size, the first is",
            store,
            dataset,
            first,
            (heights[first], widths[first]),
            (dataset.heights[first], dataset.widths[first]),
        )


def check_sizes_of_files(
    dataset: DetectionDataset, store: BoxStore, heights: np.ndarray, widths: np.ndarray
) -> None:
    """The same for images whose sizes the data set does not tell: looks into some of the files.

    Files that cannot be read are left to the data policy.

    Raises:
        ValueError: an image has another size.
    """
    unknown = np.flatnonzero((dataset.heights == 0) & (heights > 0))
    places = np.linspace(0, len(unknown) - 1, min(_SAMPLED, len(unknown))).astype(np.int64)
    for index in unknown[places]:
        try:
            size = read_image_size(dataset[int(index)].path)
        except BadSampleError:
            continue
        stored = (heights[index], widths[index])
        if size != stored:
            raise _other_images("one differs in size,", store, dataset, int(index), stored, size)


def check_parameters(store: BoxStore, method: str, parameters: Mapping[str, Any]) -> None:
    """Compare what made the store with what should have made it.

    Raises:
        ValueError: names every difference.
    """
    there = {"method": store.meta["method"], **store.meta["parameters"]}
    wanted = {"method": method, **parameters}
    other = [name for name in wanted if there.get(name) != wanted[name]]
    if other:
        listed = "\n".join(
            f"  {name}: expected {wanted[name]!r}, got {there.get(name)!r}" for name in other
        )
        raise ValueError(
            f"box store {store.path} was made in another way than the config says:\n{listed}\n"
            "Make a store with these settings, or say in the config what made this one."
        )


def _other_images(
    what: str, store: BoxStore, dataset: DetectionDataset, index: int, stored: Any, got: Any
) -> ValueError:
    return ValueError(
        f"box store {store.path} was made from other images: {what} '{dataset.key(index)}': "
        f"{stored[0]} x {stored[1]} in the store, {got[0]} x {got[1]} in {dataset.name}"
    )
