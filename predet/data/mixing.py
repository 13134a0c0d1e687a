"""One training set of several data sets, drawn by weight.

    dataloader.train.dataset = L(mix_datasets)(
        datasets=[L(load_images)(source="coco", split="train2017"), L(load_images)(source="mine")],
        weights=[3, 1],
    )

Three of four images then come from COCO, whatever the sizes. Without weights all images are equal:
the data sets are joined end to end. A key is the name of its source, "/", and its key there, so
that no two are the same; image ids are numbered anew. Box stores are keyed by the source's own
keys: give each source its boxes (`pseudo_labelled`) first, then mix. Weights are for training; a
mixture that is evaluated has each image once.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from typing import Literal

import numpy as np

from predet.data.dataset import DetectionDataset, Sources
from predet.data.sampling import ImageStream, MixedStream, Stream

_logger = logging.getLogger(__name__)


def mix_datasets(
    *,
    datasets: Sequence[DetectionDataset],
    weights: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    classes: Literal["equal", "by_name"] = "equal",
) -> DetectionDataset:
    """Join data sets into one.

    Args:
        datasets: Labelled, pseudo-labelled or unlabelled ones.
        weights: Each data set's share of the images in training, up to a common factor; None for
            shares by size.
        names: What to call the sources; None takes the names of the data sets.
        classes: "equal": all have the same classes in the same order. "by_name": the classes are
            those of all, in the order in which they first come; the mapping is logged. Data sets
            without classes go with either.

    Raises:
        ValueError: Classes differ, an argument does not fit, or one of the data sets is itself a
            mixture.
    """
    names = _source_names(datasets, names)
    _check_weights(datasets, weights)
    for dataset in datasets:
        if dataset.sources is not None:
            raise ValueError(f"{dataset.name!r} is a mixture itself: list its parts instead")
    class_names, category_ids = _join_classes(datasets, classes)
    maps = [
        np.asarray([class_names.index(name) for name in dataset.class_names], np.int32)
        for dataset in datasets
    ]
    _report(datasets, names, class_names, weights)
    counts = np.concatenate([np.diff(dataset.offsets) for dataset in datasets])
    roots = [os.path.abspath(dataset.root) for dataset in datasets]
    return DetectionDataset(
        name=" + ".join(names),
        root=os.path.commonpath(roots),
        class_names=class_names,
        category_ids=category_ids,
        keys=[
            f"{name}/{dataset.key(index)}"
            for name, dataset in zip(names, datasets, strict=True)
            for index in range(len(dataset))
        ],
        image_ids=np.arange(1, len(counts) + 1),
        heights=np.concatenate([dataset.heights for dataset in datasets]),
        widths=np.concatenate([dataset.widths for dataset in datasets]),
        offsets=np.cumsum([0, *counts]),
        boxes=np.concatenate([dataset.boxes for dataset in datasets]),
        classes=np.concatenate(
            [labels[dataset.classes] for labels, dataset in zip(maps, datasets, strict=True)]
        ),
        iscrowd=np.concatenate([dataset.iscrowd for dataset in datasets]),
        areas=np.concatenate([dataset.areas for dataset in datasets]),
        sources=Sources(
            roots=dict(zip(names, roots, strict=True)),
            weights=None if weights is None else dict(zip(names, map(float, weights), strict=True)),
        ),
    )


def train_stream(dataset: DetectionDataset, *, seed: int) -> Stream:
    """The order in which a training run reads `dataset`, by the weights of its sources if any.

    Raises:
        ValueError: There are no images, or none of a source, or the seed is negative.
    """
    if dataset.sources is None or dataset.sources.weights is None:
        return ImageStream(num_images=len(dataset), seed=seed)
    weights = dataset.sources.weights
    number_of = {name: number for number, name in enumerate(weights)}
    keys = map(dataset.key, range(len(dataset)))
    source = np.fromiter((number_of[key.partition("/")[0]] for key in keys), np.int64, len(dataset))
    groups = [np.flatnonzero(source == number) for number in range(len(weights))]
    for name, group in zip(weights, groups, strict=True):
        if not len(group):
            raise ValueError(
                f"data set {dataset.name!r}: source {name!r} has weight {weights[name]:g}, but "
                "none of its images is left"
            )
    return MixedStream(groups=groups, weights=list(weights.values()), seed=seed)


def _source_names(
    datasets: Sequence[DetectionDataset], names: Sequence[str] | None
) -> tuple[str, ...]:
    if not datasets:
        raise ValueError("mix_datasets needs at least one data set, got none")
    if names is None:
        names = _unique([dataset.name.replace("/", "_") for dataset in datasets])
    if len(names) != len(datasets) or len(set(names)) != len(names):
        raise ValueError(
            f"names must be different, one for each of {len(datasets)} data sets, got {list(names)}"
        )
    for name in names:
        if not name or "/" in name:
            raise ValueError(f"the name of a source must not be empty or hold '/', got {name!r}")
    return tuple(names)


def _unique(names: list[str]) -> list[str]:
    """Repeated names get a number: "a", "a (2)"."""
    found: list[str] = []
    for name in names:
        number, candidate = 1, name
        while candidate in found:
            number += 1
            candidate = f"{name} ({number})"
        found.append(candidate)
    return found


def _check_weights(datasets: Sequence[DetectionDataset], weights: Sequence[float] | None) -> None:
    if weights is None:
        return
    if len(weights) != len(datasets):
        raise ValueError(
            f"expected one weight for each of {len(datasets)} data sets, got {list(weights)}"
        )
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"weights must be positive numbers, got {list(weights)}")


def _join_classes(
    datasets: Sequence[DetectionDataset], how: str
) -> tuple[tuple[str, ...], Sequence[int]]:
    """Names and category ids of the mixture."""
    if how not in ("equal", "by_name"):
        raise ValueError(f"classes must be 'equal' or 'by_name', got {how!r}")
    labelled = [dataset for dataset in datasets if dataset.class_names]
    if not labelled:
        return (), ()
    first = labelled[0]
    other = [dataset for dataset in labelled if dataset.class_names != first.class_names]
    if not other:
        return first.class_names, first.category_ids
    if how == "equal":
        raise ValueError(
            f"data sets {first.name!r} and {other[0].name!r} have different classes: "
            f"{_difference(first.class_names, other[0].class_names)}; classes='by_name' joins them"
        )
    joined = tuple(dict.fromkeys(name for dataset in labelled for name in dataset.class_names))
    return joined, range(1, len(joined) + 1)


def _difference(first: Sequence[str], second: Sequence[str]) -> str:
    only = [sorted(set(first) - set(second))[:5], sorted(set(second) - set(first))[:5]]
    if not any(only):
        return f"the same names in another order: {list(first)[:5]} and {list(second)[:5]}"
    return f"{len(first)} and {len(second)}, {only[0]} only here, {only[1]} only there"


def _report(
    datasets: Sequence[DetectionDataset],
    names: Sequence[str],
    class_names: Sequence[str],
    weights: Sequence[float] | None,
) -> None:
    shares = [len(dataset) for dataset in datasets] if weights is None else weights
    for name, dataset, share in zip(names, datasets, shares, strict=True):
        _logger.info(
            "source %r: %d images, %d boxes, %.1f%% of the images in training",
            name,
            len(dataset),
            len(dataset.boxes),
            100 * share / max(sum(shares), 1e-9),
        )
        if dataset.class_names and dataset.class_names != tuple(class_names):
            mapping = ", ".join(
                f"{index} {label!r} -> {class_names.index(label)}"
                for index, label in enumerate(dataset.class_names)
            )
            _logger.info("source %r: classes by name: %s", name, mapping)
            absent = [label for label in class_names if label not in dataset.class_names]
            if absent and len(dataset.boxes):
                _logger.warning(
                    "source %r: no boxes of %s: where its images show them, they count as "
                    "background",
                    name,
                    absent[:10],
                )
    empty = [name for name, dataset in zip(names, datasets, strict=True) if not len(dataset.boxes)]
    if empty and len(empty) < len(datasets):
        _logger.warning(
            "no boxes in %s: to a detector that trains on boxes, images without objects", empty
        )
