"""Two views of an image with the same boxes in both: samples of box-level contrast.

AlignDet (arXiv 2307.11077) compares what a detector says of a region in one view with what a copy
of it says of the same region in another one. Row i of one view's boxes is row i of the other's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from predet.data.augmentation import Augmentation, Sample, make_sample
from predet.data.box_sources import BoxSource
from predet.data.dataset import DetectionDataset, Record
from predet.data.images import read_image
from predet.data.mapper import batch_dict, check_size
from predet.data.views import Photometric


class TwoViewMapper:
    """Read an image, ask for its boxes, make two views. Picklable; holds no state between calls.

    Both views begin with the same image and boxes and draw their own changes. A box that is cut
    off in one of them (by a crop; the paper has none) is in neither. An image without boxes stays
    one without: whether a data set keeps such images is the data set's option.

    Args:
        augmentation: geometry of each view.
        boxes: where boxes and classes come from.
        photometric: what is done to the pixels of each view after that, in order.
    """

    def __init__(
        self,
        *,
        augmentation: Augmentation,
        boxes: BoxSource,
        photometric: Sequence[Photometric] = (),
    ):
        self.augmentation, self.boxes = augmentation, boxes
        self.photometric = tuple(photometric)

    @property
    def provenance(self) -> dict[str, str]:
        """What the boxes of a run hang on besides its config: the store, if they are in one."""
        return getattr(self.boxes, "provenance", {})

    def check(self, dataset: DetectionDataset) -> None:
        """Look at the images before training begins; the train loader calls it.

        Raises:
            ValueError: the box source cannot serve them.
        """
        self.boxes.check(dataset)

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, Any]:
        """Map one record.

        Returns:
            What `DetectionMapper` returns, for the first view; "boxes_missing" as `PretextMapper`
            has it; and "views": a list of two dicts
            {"image": (3, H, W) uint8 RGB, "instances": in the frame of that image}. The views have
            as many instances, and instance i of both is the same box of the original image.

        Raises:
            BadSampleError: The file cannot be read, its size is not the annotated one, or the
                source has no boxes for such an image.
        """
        image = read_image(record.path)
        check_size(record, *image.shape[:2])
        boxes, classes = self.boxes(image, record, rng)
        start = make_sample(image, boxes, classes)
        views = [self._view(start, rng) for _ in range(2)]
        common = np.intersect1d(views[0].source_rows, views[1].source_rows)
        items = [batch_dict(record, image, _only(view, common)) for view in views]
        made = [{key: item[key] for key in ("image", "instances")} for item in items]
        missing = max(0, (self.boxes.num_boxes or 0) - len(boxes))
        return {**items[0], "views": made, "boxes_missing": missing}

    def _view(self, start: Sample, rng: np.random.Generator) -> Sample:
        view = self.augmentation(start, rng)
        pixels = view.image
        for change in self.photometric:
            pixels = change(pixels, rng)
        return view._replace(image=pixels)


def _only(view: Sample, rows: np.ndarray) -> Sample:
    """The boxes that come from the given ascending `rows`, in this order."""
    order = np.argsort(view.source_rows, kind="stable")
    kept = order[np.searchsorted(view.source_rows[order], rows)]
    return view._replace(
        boxes=view.boxes[kept], classes=view.classes[kept], source_rows=view.source_rows[kept]
    )
