"""Take a part of a data set: drawn by seed, or by the folders in which the images lie."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

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


def select_folders(
    dataset: DetectionDataset, *, folders: Sequence[str] | str | os.PathLike[str]
) -> DetectionDataset:
    """The images that lie in one of `folders`, at any depth: for example ImageNet-100.

    Args:
        folders: Names of folders such as "n01440764", or a text file with a name a line (what
            follows the name is not read).

    Raises:
        ValueError: A name is not that of a folder with images, or none is given.
    """
    where = "folders"
    if isinstance(folders, str | os.PathLike):
        where = os.fspath(folders)
        if not Path(folders).is_file():
            raise ValueError(f"{where}: expected a text file with the name of a folder a line")
        lines = Path(folders).read_text(encoding="utf-8").splitlines()
        folders = [line.split()[0] for line in lines if line.strip()]
    wanted = set(folders)
    if not wanted:
        raise ValueError(f"{where}: expected names of folders, got none")
    parents = [key.rpartition("/")[0] for key in dataset.keys()]  # noqa: SIM118 (no dict)
    names_of = {parent: set(parent.split("/")) for parent in set(parents)}
    missing = sorted(wanted - set().union(*names_of.values()))
    if missing:
        raise ValueError(
            f"{where}: {len(missing)} of {len(wanted)} folders hold no image of {dataset.name!r}, "
            f"the first is {missing[0]!r}"
        )
    taken = {parent for parent, names in names_of.items() if not wanted.isdisjoint(names)}
    chosen = [index for index, parent in enumerate(parents) if parent in taken]
    return dataset.select(chosen, name=f"{dataset.name}[{len(wanted)} folders]")
