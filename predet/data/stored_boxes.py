"""Boxes of pre-training out of a box store, read while training, image by image.

What a store must fit is found out before training begins: its format when it is opened, what made
it when the source is built, images and sizes when the loader is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from predet.data.box_picks import Pick
from predet.data.box_sources import Boxes, BoxSource, SelectiveSearchRegions, take_ranked
from predet.data.box_store import BoxRow, BoxStore, ScoreColumns
from predet.data.dataset import DetectionDataset, Record
from predet.data.images import BadSampleError
from predet.data.region_search import RegionSearch
from predet.data.store_checks import (
    check_parameters,
    check_sizes,
    check_sizes_of_files,
    rows_of,
    skipped_images,
)
from predet.ops.selective_search import from_rows

logger = logging.getLogger(__name__)

# What `meta.json` says of the boxes themselves.
_TELLING = ("format", "method", "parameters", "seed", "teacher", "fingerprint", "counts")


class _StoreSource:
    """What all sources do that read a store."""

    def __init__(self, store: str | os.PathLike[str] | BoxStore, pick: Pick):
        self.store = store if isinstance(store, BoxStore) else BoxStore(store)
        self.pick = pick

    @property
    def num_boxes(self) -> int:
        return self.pick.k

    @property
    def provenance(self) -> dict[str, str]:
        """What a run that goes on must find again: the store, wherever it lies."""
        told = {name: self.store.meta[name] for name in _TELLING}
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        return {"method": self.store.meta["method"], "store": digest}

    def check(self, dataset: DetectionDataset) -> None:
        """Compare keys and sizes, count the boxes, and say how many images have too few.

        Raises:
            ValueError: the store lacks an image, or was made from others.
        """
        skipped_images(dataset, self.store)
        heights, widths, counts = np.zeros((3, len(dataset)), np.int32)
        for columns, index in rows_of(dataset, self.store):
            here = index >= 0
            heights[index[here]] = columns.heights[here]
            widths[index[here]] = columns.widths[here]
            counts[index[here]] = self._counted(columns)[here]
        check_sizes(dataset, self.store, heights, widths)
        check_sizes_of_files(dataset, self.store, heights, widths)
        few = counts < self.pick.k
        if few.any():
            logger.warning(
                "%s: %d of the %d images of %s have fewer than %d boxes, %d of them none; the "
                "first is '%s' with %d",
                self.store.path,
                few.sum(),
                len(dataset),
                dataset.name,
                self.pick.k,
                (counts == 0).sum(),
                dataset.key(int(few.argmax())),
                counts[few.argmax()],
            )

    def _counted(self, columns: ScoreColumns) -> np.ndarray:
        """Boxes of each row."""
        raise NotImplementedError

    def _row(self, image: np.ndarray, record: Record, rng: np.random.Generator) -> BoxRow:
        if record.key not in self.store:  # `check` has said that it was skipped
            raise BadSampleError(f"{record.path}: box store {self.store.path} does not hold it")
        row = self.store.with_levels(record.key)
        if (row.height, row.width) != image.shape[:2]:
            raise BadSampleError(
                f"{record.path}: box store {self.store.path} was made from an image of "
                f"{row.width}x{row.height} pixels, the file has {image.shape[1]}x{image.shape[0]}"
            )
        return row


class StoredBoxes(_StoreSource):
    """Boxes of a store, by score: those of EdgeBoxes, MaskCut or another detector.

    With `TopK`, `predet.data.pseudo_labels` gives the same boxes and reads the store only once.
    Boxes without area are left out.

    Args:
        store: a finished store, or its folder.
        pick: which of the boxes are taken, best score first.
        method: what must have made the store (`StoreInfo.method`); None for anything.
        parameters: what it must have been told, as far as named here; None for anything.

    Raises:
        ValueError: no store, one of an older format, or one made in another way.
    """

    def __init__(
        self,
        *,
        store: str | os.PathLike[str] | BoxStore,
        pick: Pick,
        method: str | None = None,
        parameters: Mapping[str, Any] | None = None,
    ):
        super().__init__(store, pick)
        made_by = self.store.meta["method"]
        if self.store.holds_levels:
            raise ValueError(
                f"box store {self.store.path} was made by {made_by!r}, whose order is drawn anew "
                "for each epoch: use StoredRegions"
            )
        check_parameters(self.store, method or made_by, parameters or {})

    def __call__(self, image: np.ndarray, record: Record, rng: np.random.Generator) -> Boxes:
        row = self._row(image, record, rng)
        ranked = np.argsort(-row.scores, kind="stable")
        ranked = ranked[(row.boxes[ranked, 2:] > row.boxes[ranked, :2]).all(axis=1)]
        taken = ranked[self.pick(len(ranked), rng)]
        return row.boxes[taken], row.classes[taken]

    def _counted(self, columns: ScoreColumns) -> np.ndarray:
        return np.diff(columns.offsets)


class StoredRegions(_StoreSource):
    """Regions of Selective Search out of a store, their order drawn anew each time.

    The same draws from the same generator as `SelectiveSearchRegions`, without the search.

    Args:
        store: made by tools/extract_proposals.py.
        pick: which of the ranked regions are taken.
        search: how the images must have been searched; None for any way.

    Raises:
        ValueError: no store, one of an older format, not of Selective Search, or of another search.
    """

    def __init__(
        self,
        *,
        store: str | os.PathLike[str] | BoxStore,
        pick: Pick,
        search: RegionSearch | None = None,
    ):
        super().__init__(store, pick)
        if not self.store.holds_levels:
            raise ValueError(
                f"box store {self.store.path}, made by {self.store.meta['method']!r}, holds no "
                "levels of Selective Search, so its order cannot be drawn anew: use StoredBoxes, "
                "or make it again with tools/extract_proposals.py"
            )
        if search is not None:
            check_parameters(self.store, search.method, search.parameters)

    def __call__(self, image: np.ndarray, record: Record, rng: np.random.Generator) -> Boxes:
        row = self._row(image, record, rng)
        return take_ranked(from_rows(row.boxes, row.scores), self.pick, rng)

    def _counted(self, columns: ScoreColumns) -> np.ndarray:
        counts = columns.count(columns.scores >= 0)
        without = (counts > 0) & (columns.count(columns.scores < 0) == 0)
        if without.any():
            raise ValueError(
                f"box store {self.store.path} holds no levels of Selective Search, for instance of "
                f"'{columns.keys[int(without.argmax())]}': its order cannot be drawn anew; make it "
                "again with tools/extract_proposals.py"
            )
        return counts


class RegionsOfOtherImages(StoredRegions):
    """A control: each time the regions of another image of the store, scaled to this one's size.

    Sizes, places and number of the boxes are as those of `StoredRegions`; what they lie on is not
    what they were found by. "Rand. Prop." in DETReg's ablation.
    """

    def check(self, dataset: DetectionDataset) -> None:
        super().check(dataset)
        if len(self.store) < 2:
            raise ValueError(f"box store {self.store.path} holds no other image to take boxes of")

    def _row(self, image: np.ndarray, record: Record, rng: np.random.Generator) -> BoxRow:
        own = super()._row(image, record, rng)
        key = own.key
        while key == own.key:
            key = self.store.key(int(rng.integers(len(self.store))))
        other = self.store.with_levels(key)
        scale = np.float32([own.width / other.width, own.height / other.height] * 2)
        return other._replace(boxes=other.boxes * scale)


def stored_or_searched(
    *, search: RegionSearch, pick: Pick, store: str | os.PathLike[str] | BoxStore | None = None
) -> BoxSource:
    """Boxes of a store, if one is given, else regions of Selective Search, searched while training.

    Of a store that `search` has made these are the same, to the bit.

    Args:
        search: how images are searched, or must have been, if the store is of Selective Search.
        pick: which of the ranked boxes are taken.
        store: a finished store, or its folder.

    Raises:
        ValueError: no store, one of an older format, or of another search.
    """
    if store is None:
        return SelectiveSearchRegions(search=search, pick=pick)
    store = store if isinstance(store, BoxStore) else BoxStore(store)
    if store.holds_levels:
        return StoredRegions(store=store, pick=pick, search=search)
    return StoredBoxes(store=store, pick=pick)
