"""What the configs ask for: a data set, or the part of it that is drawn by seed."""

from __future__ import annotations

import os

from predet.data.dataset import DetectionDataset
from predet.data.formats import load_dataset
from predet.data.subset import draw_images


def load_images(
    source: str | os.PathLike[str],
    *,
    split: str | None = None,
    image_root: str | os.PathLike[str] | None = None,
    format: str | None = None,
    num_images: int | None = None,
    fraction: float | None = None,
    seed: int = 0,
) -> DetectionDataset:
    """`load_dataset`, then `draw_images` if `num_images` or `fraction` is given.

    Arguments are those of the two; without a number or a fraction all images are taken.
    """
    dataset = load_dataset(source, split=split, image_root=image_root, format=format)
    if num_images is None and fraction is None:
        return dataset
    return draw_images(dataset, num_images=num_images, fraction=fraction, seed=seed)
