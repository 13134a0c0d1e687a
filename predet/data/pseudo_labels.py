"""Pseudo-labels out of a `BoxStore`: the stored boxes as annotations of a data set.

"Revisiting DETR Pre-training for Object Detection" (arXiv 2308.01300) pre-trains on the boxes and
classes that a trained detector predicts. A store holds every query's box with its score; which of
them become targets is chosen here, so thresholds and counts can be changed without the teacher.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from predet.data.box_store import BoxColumns, BoxStore
from predet.data.dataset import DetectionDataset
from predet.data.store_checks import check_sizes, check_sizes_of_files, skipped_images

logger = logging.getLogger(__name__)

DEFAULT_TOP_K = 30  # the paper's count of boxes an image


def pseudo_labelled(
    dataset: DetectionDataset,
    *,
    store: str | os.PathLike[str] | BoxStore,
    top_k: int | Literal["auto"] | None = "auto",
    score_threshold: float | Literal["auto"] = "auto",
    class_names: Sequence[str] | None = None,
    empty: Literal["keep", "drop"] = "keep",
    shuffle_seed: int | None = None,
) -> DetectionDataset:
    """The images of `dataset` with the boxes of `store` in place of their annotations.

    Of the stored boxes of an image those that score at least `score_threshold` are taken, and of
    these the best `top_k`. (Duplicates were removed before they were stored. That order does not
    matter: what removes a duplicate scores higher than it.)

    Args:
        dataset: the images; their annotations, if any, are not looked at.
        store: a finished store that holds every image of `dataset`, or its folder.
        top_k: the most boxes of an image; None takes all, "auto" what the tool that made the store
            was told, 30 by default.
        score_threshold: the lowest score that counts; "auto" as above, 0 by default.
        class_names: the classes of the result, in this order; boxes of other classes are left out.
            None takes the store's.
        empty: keep or drop the images that are left without boxes; counted in the log.
        shuffle_seed: a control: every image gets the boxes of another one, scaled to its size, by
            a draw of this seed. Counts, sizes, places and classes of boxes stay as they are over
            the whole set; only what they lie on is wrong. None leaves the boxes where they belong.

    Raises:
        ValueError: the store lacks an image, or was made from images of another size; no class of
            the store is asked for; no image has a box left; an option out of range.
    """
    if not isinstance(store, BoxStore):
        store = BoxStore(store)
    if empty not in ("keep", "drop"):
        raise ValueError(f"empty must be 'keep' or 'drop', got {empty!r}")
    top_k, score_threshold = _selection(store, top_k, score_threshold)
    dataset = _without_skipped(dataset, store)
    names, ids, label_of = _classes(store, class_names)
    index_of = {key: index for index, key in enumerate(dataset.keys())}
    chosen = _Chosen.collect(store, index_of, label_of, top_k, score_threshold)
    check_sizes(dataset, store, chosen.heights, chosen.widths)
    check_sizes_of_files(dataset, store, chosen.heights, chosen.widths)
    if shuffle_seed is not None:
        if len(dataset) < 2:
            raise ValueError(
                f"{dataset.name} has no other image to take the boxes of: {store.path}"
            )
        chosen = _shuffled(chosen, shuffle_seed)
    result = DetectionDataset(
        name=f"{dataset.name}, {store.meta['method']} boxes",
        root=dataset.root,
        class_names=names,
        category_ids=ids,
        keys=dataset.keys(),
        image_ids=dataset.image_ids,
        heights=chosen.heights,
        widths=chosen.widths,
        offsets=chosen.offsets,
        boxes=chosen.boxes,
        classes=chosen.classes,
        sources=dataset.sources,
    )
    counts = np.diff(result.offsets)
    logger.info(
        "%s: %d boxes in %d images (%.1f an image; score >= %g, at most %s: %d images have fewer); "
        "%d images are left without boxes and are %s",
        store.path,
        len(result.boxes),
        len(result),
        counts.mean(),
        score_threshold,
        top_k or "all",
        (counts < (top_k or 0)).sum(),
        (counts == 0).sum(),
        "kept" if empty == "keep" else "dropped",
    )
    if not counts.any():
        raise ValueError(
            f"box store {store.path} has no box of score >= {score_threshold:g} for any of the "
            f"{len(result)} images of {dataset.name}: there is nothing to learn"
        )
    return result if empty == "keep" else result.select(np.flatnonzero(counts))


def _selection(
    store: BoxStore, top_k: int | str | None, score_threshold: float | str
) -> tuple[int | None, float]:
    """Count and threshold to use: those given, else the store's own, else the paper's."""
    own = {"top_k": DEFAULT_TOP_K, "score_threshold": 0.0, **(store.meta["selection"] or {})}
    if top_k == "auto":
        top_k = own["top_k"]
    if score_threshold == "auto":
        score_threshold = own["score_threshold"]
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"top_k must be at least 1, None or 'auto', got {top_k!r}")
    if not isinstance(score_threshold, (int, float)):
        raise ValueError(f"score_threshold must be a number or 'auto', got {score_threshold!r}")
    return top_k, score_threshold


class _Chosen(NamedTuple):
    """The boxes taken, by image of the data set. n images, M boxes."""

    heights: np.ndarray  # (n,)
    widths: np.ndarray  # (n,)
    offsets: np.ndarray  # (n + 1,)
    boxes: np.ndarray  # (M, 4)
    classes: np.ndarray  # (M,)

    @classmethod
    def collect(
        cls,
        store: BoxStore,
        index_of: dict[str, int],
        label_of: np.ndarray,
        top_k: int | None,
        score_threshold: float,
    ) -> _Chosen:
        """Read the store once, shard by shard, keeping only what is taken."""
        heights = np.zeros(len(index_of), dtype=np.int32)
        widths = np.zeros(len(index_of), dtype=np.int32)
        images, boxes, classes = [np.zeros(0, np.int64)], [np.zeros((0, 4), np.float32)], [_EMPTY]
        for columns in store.shards():
            index = np.asarray([index_of.get(key, -1) for key in columns.keys], dtype=np.int64)
            heights[index[index >= 0]] = columns.heights[index >= 0]
            widths[index[index >= 0]] = columns.widths[index >= 0]
            image = np.repeat(index, np.diff(columns.offsets))
            usable = (image >= 0) & (label_of[columns.classes] >= 0)
            taken = _best(columns, usable, top_k, score_threshold)
            images.append(image[taken])
            boxes.append(columns.boxes[taken])
            classes.append(label_of[columns.classes[taken]])
        image = np.concatenate(images)
        order = np.argsort(image, kind="stable")
        offsets = np.zeros(len(index_of) + 1, dtype=np.int64)
        np.cumsum(np.bincount(image, minlength=len(index_of)), out=offsets[1:])
        return cls(
            heights, widths, offsets, np.concatenate(boxes)[order], np.concatenate(classes)[order]
        )


_EMPTY = np.zeros(0, dtype=np.int64)


def _best(
    columns: BoxColumns, usable: np.ndarray, top_k: int | None, score_threshold: float
) -> np.ndarray:
    """Positions of the boxes to take, image by image, best first; equal scores in stored order."""
    usable = usable & (columns.scores >= score_threshold)
    usable &= (columns.boxes[:, 2:] > columns.boxes[:, :2]).all(axis=1)  # a target has an area
    position = np.flatnonzero(usable)
    row = np.repeat(np.arange(len(columns.keys)), np.diff(columns.offsets))[position]
    order = np.lexsort((-columns.scores[position], row))
    position, row = position[order], row[order]
    if top_k is None:
        return position
    rank = np.arange(len(row)) - np.searchsorted(row, row, side="left")
    return position[rank < top_k]


def _shuffled(chosen: _Chosen, seed: int) -> _Chosen:
    """The boxes moved to other images, along one cycle through all of them in random order."""
    order = np.random.default_rng(seed).permutation(len(chosen.heights))
    source = np.empty_like(order)
    source[order] = np.roll(order, -1)
    counts = np.diff(chosen.offsets)[source]
    offsets = np.zeros_like(chosen.offsets)
    np.cumsum(counts, out=offsets[1:])
    rows = np.repeat(chosen.offsets[source] - offsets[:-1], counts) + np.arange(offsets[-1])
    scale = np.stack(
        [chosen.widths / chosen.widths[source], chosen.heights / chosen.heights[source]] * 2, axis=1
    )
    boxes = (chosen.boxes[rows] * np.repeat(scale, counts, axis=0)).astype(np.float32)
    return chosen._replace(offsets=offsets, boxes=boxes, classes=chosen.classes[rows])


def _without_skipped(dataset: DetectionDataset, store: BoxStore) -> DetectionDataset:
    """The images that the store holds; those it lacks for another reason are an error."""
    gone = set(skipped_images(dataset, store))
    if not gone:
        return dataset
    return dataset.select([index for index in range(len(dataset)) if index not in gone])


def _classes(
    store: BoxStore, class_names: Sequence[str] | None
) -> tuple[tuple[str, ...], list[int], np.ndarray]:
    """Names and category ids of the result, and for each class of the store its new label or -1."""
    stored = store.class_names or ("object",)
    ids = store.meta["category_ids"] or list(range(1, len(stored) + 1))
    if class_names is None or tuple(class_names) == stored:
        return stored, ids, np.arange(len(stored))
    names = tuple(class_names)
    label_of = np.asarray([names.index(name) if name in names else -1 for name in stored])
    if (label_of < 0).all():
        raise ValueError(
            f"none of the classes asked for, {list(names)[:5]}, is in box store {store.path}, "
            f"which has {list(stored)[:5]}"
        )
    left_out = [name for name, label in zip(stored, label_of, strict=True) if label < 0]
    if left_out:
        logger.warning(
            "boxes of %d classes of %s are left out: %s", len(left_out), store.path, left_out[:10]
        )
    return names, list(range(1, len(names) + 1)), label_of
