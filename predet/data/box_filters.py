"""Filters of stored boxes: by size, shape, overlap and number; a filtered store is a new store.

AlignDet takes its proposals from Selective Search as SoCo filters them ("ratio3size0008"): sides
of at least 32 pixels, w / h between 1/3 and 3, the root of the area at most 0.8 of the image's;
and for images that nothing is left of, less of it. `soco_filter` is this rule.

A filter is a callable that takes a row of a store and gives the positions of the boxes that stay,
in ascending order. All are frozen dataclasses, so that a store can say what made it.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torchvision.ops import nms

from predet.data.box_store import BoxRow, BoxStore
from predet.data.box_store_writer import BoxStoreWriter, StoreInfo

logger = logging.getLogger(__name__)


class BoxFilter(Protocol):
    """Which boxes of an image stay."""

    def __call__(self, row: BoxRow) -> np.ndarray:
        """Positions (K,) int64, ascending."""
        ...


@dataclass(frozen=True, kw_only=True)
class MinSize:
    """Both sides have at least so many pixels of the original image."""

    pixels: float

    def __post_init__(self) -> None:
        if not self.pixels >= 0:
            raise ValueError(f"the least side must be 0 or more pixels, got {self.pixels}")

    def __call__(self, row: BoxRow) -> np.ndarray:
        return np.flatnonzero((_sides(row) >= self.pixels).all(axis=1))


@dataclass(frozen=True, kw_only=True)
class AspectRatio:
    """Width divided by height lies between 1 / limit and limit. Boxes without an area go."""

    limit: float

    def __post_init__(self) -> None:
        if not self.limit >= 1:
            raise ValueError(f"the limit of the aspect ratio must be at least 1, got {self.limit}")

    def __call__(self, row: BoxRow) -> np.ndarray:
        sides = _sides(row)
        narrow, wide = sides.min(axis=1), sides.max(axis=1)
        return np.flatnonzero((narrow > 0) & (wide <= self.limit * narrow))


@dataclass(frozen=True, kw_only=True)
class RelativeSize:
    """The root of the box's area divided by that of the image's lies in [low, high]."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise ValueError(f"relative sizes must rise from 0 on, got [{self.low}, {self.high}]")

    def __call__(self, row: BoxRow) -> np.ndarray:
        share = np.sqrt(_sides(row).prod(axis=1) / (row.height * row.width))
        return np.flatnonzero((share >= self.low) & (share <= self.high))


@dataclass(frozen=True, kw_only=True)
class NonMaximum:
    """Boxes that overlap an earlier one that stays by more than `iou` go; stored order counts."""

    iou: float

    def __post_init__(self) -> None:
        if not 0 <= self.iou <= 1:
            raise ValueError(f"the largest IoU must lie in [0, 1], got {self.iou}")

    def __call__(self, row: BoxRow) -> np.ndarray:
        rank = -torch.arange(len(row.boxes), dtype=torch.float64)
        boxes = torch.from_numpy(row.boxes.astype(np.float64))
        return np.sort(nms(boxes, rank, self.iou).numpy())


@dataclass(frozen=True, kw_only=True)
class FirstK:
    """The first k boxes in stored order."""

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"the number of boxes to keep must be at least 1, got {self.k}")

    def __call__(self, row: BoxRow) -> np.ndarray:
        return np.arange(min(self.k, len(row.boxes)))


@dataclass(frozen=True)
class Chain:
    """One filter after the other, each on what the one before has left."""

    filters: tuple[BoxFilter, ...]

    def __call__(self, row: BoxRow) -> np.ndarray:
        kept = np.arange(len(row.boxes))
        for one in self.filters:
            kept = kept[one(row.take(kept))]
        return kept


@dataclass(frozen=True)
class FirstThatLeaves:
    """The first of several filters that leaves any box; nothing where none does."""

    options: tuple[BoxFilter, ...]

    def __call__(self, row: BoxRow) -> np.ndarray:
        for option in self.options:
            kept = option(row)
            if len(kept):
                return kept
        return np.zeros(0, dtype=np.int64)


def soco_filter(
    *, min_size: float = 32, aspect: float = 3, low: float = 0.0, high: float = 0.8
) -> FirstThatLeaves:
    """SoCo's filter, "ratio3size0008" by default.

    Where nothing is left the relative size does not count, and then the aspect ratio does not.
    The least side always does.
    """
    sides, shape = MinSize(pixels=min_size), AspectRatio(limit=aspect)
    share = RelativeSize(low=low, high=high)
    return FirstThatLeaves((Chain((sides, shape, share)), Chain((sides, shape)), sides))


def filter_store(
    source: str | os.PathLike[str] | BoxStore,
    output: str | os.PathLike[str],
    *,
    filters: Sequence[BoxFilter],
) -> BoxStore:
    """A new store with what the filters leave of each image, one after the other.

    Every image keeps its row, also without boxes. What tells levels of Selective Search goes: the
    order of a filtered store cannot be drawn anew. By default readers take all boxes of the result
    that score 0 or more.

    Args:
        source: a finished store, or its folder.
        output: the new store's folder; killed, the same call goes on.
        filters: at least one.

    Raises:
        ValueError: no filter; `output` holds something else.
    """
    if not filters:
        raise ValueError("there is nothing to filter by: give at least one filter")
    store = source if isinstance(source, BoxStore) else BoxStore(source)
    writer = BoxStoreWriter(
        output,
        info=_info(store, filters),
        keys=[*store.keys, *store.skipped],
        shard_size=store.meta["shard_size"],
    )
    keep, skipped = Chain(tuple(filters)), store.skipped
    before = after = 0
    for shard in writer.missing_shards():
        rows = []
        for key in writer.shard_keys(shard):
            if key in skipped:
                continue
            row = store[key]
            rows.append(row.take(keep(row)))
            before, after = before + len(row.boxes), after + len(rows[-1].boxes)
        gone = {key: skipped[key] for key in writer.shard_keys(shard) if key in skipped}
        writer.write_shard(shard, rows, skipped=gone)
    result = writer.finish()
    logger.info(
        "%s: %d of %d boxes stay; %d of %d images have none",
        result.path,
        after,
        before,
        result.meta["counts"]["images_without_boxes"],
        len(result),
    )
    return result


def described(part: Any) -> Any:
    """A filter as JSON: its name with its settings."""
    if isinstance(part, tuple):
        return [described(one) for one in part]
    if not dataclasses.is_dataclass(part):
        return part
    settings = {f.name: described(getattr(part, f.name)) for f in dataclasses.fields(part)}
    return {type(part).__name__: settings}


def _info(store: BoxStore, filters: Sequence[BoxFilter]) -> StoreInfo:
    meta = store.meta
    parameters = dict(meta["parameters"])
    done = parameters.pop("filters", [])
    return StoreInfo(
        method=meta["method"],
        parameters={**parameters, "filters": [*done, *(described(one) for one in filters)]},
        class_names=store.class_names,
        category_ids=None if meta["category_ids"] is None else tuple(meta["category_ids"]),
        image_root=meta["image_root"],
        dataset=meta["dataset"],
        seed=meta["seed"],
        teacher=meta["teacher"],
        selection={"top_k": None, "score_threshold": 0.0},
    )


def _sides(row: BoxRow) -> np.ndarray:
    """(N, 2) widths and heights in float64."""
    boxes = row.boxes.astype(np.float64)
    return boxes[:, 2:] - boxes[:, :2]
