"""Collect images and boxes while a format is read; check them; say what was found.

A box that no detector can be trained on is skipped, named in the log and counted:

- a coordinate is not a number;
- width or height is negative (the corners are swapped), or nothing (no area);
- it lies outside its image. A box that reaches over the border is cut at the border and counted.
"""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Sequence

import numpy as np

from predet.data.dataset import DetectionDataset

_logger = logging.getLogger(__name__)

# More skipped boxes than this are counted, and named only at log level DEBUG.
MAX_NAMED_BOXES = 100

_LEAST_CUT = 1e-3  # pixels; less is rounding, and is not counted

_NOT_A_NUMBER, _NEGATIVE, _NO_AREA, _OUTSIDE = range(1, 5)
_REASONS = {
    _NOT_A_NUMBER: "not a number",
    _NEGATIVE: "negative width or height",
    _NO_AREA: "no area",
    _OUTSIDE: "outside its image",
}


class DatasetBuilder:
    """Gathers what a format's reader finds; `build` checks it and makes the data set."""

    def __init__(
        self,
        *,
        name: str,
        root: str,
        source: str,
        class_names: Sequence[str],
        category_ids: Sequence[int],
    ):
        """Start an empty collection.

        Args:
            source: The annotation file or folder, for messages.
        """
        self.name, self.root, self.source = name, root, source
        self.class_names, self.category_ids = tuple(class_names), tuple(category_ids)
        self._images: list[tuple[str, int, int, int]] = []
        # Arrays, for lists of numbers would need ten times the memory: Objects365 has 25 million.
        self._image_indices, self._classes = array("q"), array("q")
        self._boxes, self._areas, self._iscrowd = array("d"), array("d"), array("b")
        self._labels: list[str | int] = []

    def add_image(self, *, key: str, image_id: int, height: int = 0, width: int = 0) -> int:
        """Add an image (pixels; 0 = unknown) and return its index for `add_box`."""
        self._images.append((key, image_id, height, width))
        return len(self._images) - 1

    def add_box(
        self,
        *,
        image: int,
        box: tuple[float, float, float, float],
        category: int,
        label: str | int,
        iscrowd: bool = False,
        area: float = float("nan"),
    ) -> None:
        """Add a box.

        Args:
            image: What `add_image` returned.
            box: Absolute xyxy.
            category: Contiguous class.
            label: Names this box in messages ("object 3").
            area: As annotated, in square pixels; NaN for the box's own.
        """
        self._image_indices.append(image)
        self._boxes.extend(box)
        self._classes.append(category)
        self._iscrowd.append(iscrowd)
        self._areas.append(area)
        self._labels.append(label)

    def build(self) -> DetectionDataset:
        """Check everything and make the data set.

        Raises:
            ValueError: There is no image, or two have the same key or id.
        """
        if not self._images:
            raise ValueError(f"{self.source}: the data set is empty: no images")
        keys, image_ids, heights, widths = zip(*self._images, strict=True)
        for what, values in (("image id", image_ids), ("image file", keys)):
            self._refuse_repeated(what, values)
        images = np.asarray(self._image_indices, np.int64)
        boxes = np.asarray(self._boxes, np.float64).reshape(-1, 4)
        sizes = np.asarray([widths, heights], np.float64).T[images]
        clipped, faults = check_boxes(boxes, sizes)
        self._report_skipped(boxes, faults)
        # A stable order: annotations of one image stay in the order of the file.
        order = np.argsort(images, kind="stable")
        order = order[faults[order] == 0]
        counts = np.bincount(images[order], minlength=len(keys))
        kept = clipped[order]
        areas = np.asarray(self._areas, np.float64)[order]
        own_areas = (kept[:, 2:] - kept[:, :2]).prod(axis=1)
        dataset = DetectionDataset(
            name=self.name,
            root=self.root,
            class_names=self.class_names,
            category_ids=self.category_ids,
            keys=keys,
            image_ids=image_ids,
            heights=heights,
            widths=widths,
            offsets=np.cumsum([0, *counts]),
            boxes=kept,
            classes=np.asarray(self._classes, np.int32)[order],
            iscrowd=np.asarray(self._iscrowd, np.bool_)[order],
            areas=np.where(np.isnan(areas), own_areas, areas),
        )
        cut = (np.abs(clipped[faults == 0] - boxes[faults == 0]) > _LEAST_CUT).any(axis=1)
        self._report(dataset, faults, num_cut=int(cut.sum()))
        return dataset

    def _refuse_repeated(self, what: str, values: Sequence[str | int]) -> None:
        repeated = [value for value, count in Counter(values).items() if count > 1]
        if repeated:
            raise ValueError(
                f"{self.source}: each {what} must occur once, but {len(repeated)} occur more "
                f"often: {shorten(repeated)}"
            )

    def _report_skipped(self, boxes: np.ndarray, faults: np.ndarray) -> None:
        for number, row in enumerate(np.flatnonzero(faults)):
            key, _, height, width = self._images[self._image_indices[row]]
            _logger.log(
                logging.WARNING if number < MAX_NAMED_BOXES else logging.DEBUG,
                "%s: %s: skipped %s: box %s (xyxy): %s%s",
                self.source,
                key,
                _label_text(self._labels[row]),
                [round(value, 2) for value in boxes[row].tolist()],
                _REASONS[int(faults[row])],
                f" of {width}x{height} pixels" if faults[row] == _OUTSIDE else "",
            )

    def _report(self, dataset: DetectionDataset, faults: np.ndarray, *, num_cut: int) -> None:
        skipped = Counter(_REASONS[int(fault)] for fault in faults[faults > 0])
        details = ", ".join(f"{reason}: {count}" for reason, count in sorted(skipped.items()))
        _logger.info(
            "%s: %d images (%d without boxes), %d boxes (%d crowds); skipped %d boxes%s; "
            "cut %d at the border",
            dataset.name,
            len(dataset),
            int((np.diff(dataset.offsets) == 0).sum()),
            len(dataset.boxes),
            int(dataset.iscrowd.sum()),
            int((faults > 0).sum()),
            f" ({details})" if details else "",
            num_cut,
        )
        if dataset.class_names:
            counts = np.bincount(dataset.classes, minlength=dataset.num_classes)
            mapping = ", ".join(
                f"{index}={name} (id {category}, {count} boxes)"
                for index, (name, category, count) in enumerate(
                    zip(dataset.class_names, dataset.category_ids, counts, strict=True)
                )
            )
            _logger.info("%s: %d classes: %s", dataset.name, dataset.num_classes, mapping)
        if not len(dataset.boxes):
            _logger.warning(
                "%s: no annotations: of use as unlabelled images only (%s)",
                dataset.name,
                self.source,
            )


def check_boxes(boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the faults of boxes and cut the others at the border of their image.

    Args:
        boxes: (M, 4) float64 absolute xyxy.
        sizes: (M, 2) width and height in pixels of each box's image; 0 = unknown, not cut.

    Returns:
        (M, 4) float32 boxes, cut; (M,) int fault of each, 0 = none.
    """
    limits = np.where(sizes > 0, sizes, np.inf)
    with np.errstate(invalid="ignore", over="ignore"):
        rounded = boxes.astype(np.float32)
        clipped = np.clip(rounded, 0, np.concatenate([limits, limits], axis=1, dtype=np.float32))
        faults = np.select(
            [
                ~np.isfinite(rounded).all(axis=1),
                (rounded[:, 2:] < rounded[:, :2]).any(axis=1),
                (rounded[:, 2:] == rounded[:, :2]).any(axis=1),
                (clipped[:, 2:] <= clipped[:, :2]).any(axis=1),
            ],
            [_NOT_A_NUMBER, _NEGATIVE, _NO_AREA, _OUTSIDE],
        )
    return clipped, faults


def shorten(values: Sequence[object], limit: int = 5) -> str:
    """The first values and how many more there are, for messages."""
    shown = ", ".join(repr(value) for value in values[:limit])
    return shown if len(values) <= limit else f"{shown} and {len(values) - limit} more"


def _label_text(label: str | int) -> str:
    return f"annotation id {label}" if isinstance(label, int) else label
