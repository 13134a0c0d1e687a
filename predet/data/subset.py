"""Draw a part of a data set by seed."""

from __future__ import annotations

import numpy as np

from predet.data.dataset import DetectionDataset


def draw_images(
    dataset: DetectionDataset,
    *,
    num_images: int | None = None,
    fraction: float | None = None,
    seed: int,
) -> DetectionDataset:
    """Draw images without replacement, kept in the order of the data set.

    Draws of one seed are nested: the 5% are among the 10%. All images take part in the draw, those
    without boxes too.

    Args:
        num_images: How many, in [1, len(dataset)]; give this or `fraction`.
        fraction: Which part, in (0, 1]; rounded to whole images, at least one.

    Raises:
        ValueError: Both or none of the two are given, or the number is out of range.
    """
    if (num_images is None) == (fraction is None):
        raise ValueError(
            f"give either num_images or fraction, got num_images={num_images}, fraction={fraction}"
        )
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
        num_images = max(1, round(len(dataset) * fraction))
    assert num_images is not None
    if not 1 <= num_images <= len(dataset):
        raise ValueError(
            f"data set {dataset.name!r}: num_images must lie in [1, {len(dataset)}], "
            f"got {num_images}"
        )
    chosen = np.sort(np.random.default_rng(seed).permutation(len(dataset))[:num_images])
    name = f"{dataset.name}[{num_images} of {len(dataset)}, seed {seed}]"
    return dataset.select(chosen, name=name)
