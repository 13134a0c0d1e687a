"""What the configs ask for: a data set, or a part of it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from predet.data.dataset import DetectionDataset
from predet.data.formats import load_dataset
from predet.data.subset import draw_images, select_folders


def load_images(
    source: str | os.PathLike[str],
    *,
    split: str | None = None,
    image_root: str | os.PathLike[str] | None = None,
    format: str | None = None,
    folders: Sequence[str] | str | None = None,
    num_images: int | None = None,
    fraction: float | None = None,
    seed: int = 0,
) -> DetectionDataset:
    """`load_dataset`; then `select_folders` if `folders`, and `draw_images` if a number is given.

    Arguments are those of the three; without them all images are taken.
    """
    dataset = load_dataset(source, split=split, image_root=image_root, format=format)
    if folders is not None:
        dataset = select_folders(dataset, folders=folders)
    if num_images is None and fraction is None:
        return dataset
    return draw_images(dataset, num_images=num_images, fraction=fraction, seed=seed)


def without_annotations(dataset: DetectionDataset) -> DetectionDataset:
    """The images alone, whose one class is "object": what a box source that makes boxes needs."""
    return dataset.with_annotations(
        name=dataset.name,
        class_names=("object",),
        category_ids=(1,),
        offsets=np.zeros(len(dataset) + 1, np.int64),
        boxes=np.zeros((0, 4), np.float32),
        classes=np.zeros(0, np.int32),
    )
