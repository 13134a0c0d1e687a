"""How well boxes find objects, whatever their class: DETReg's measure (arXiv 2106.04550, Table 6).

All annotations and all boxes count as one class, which is what `useCats=0` means to COCO's
evaluation; the rest is COCO's: IoU .50:.05:.95, crowds, one best match for each object.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from predet.data.box_store import BoxStore
from predet.data.dataset import DetectionDataset
from predet.data.formats.coco_json import to_content
from predet.data.store_checks import check_sizes, rows_of, skipped_images
from predet.evaluation.average_precision import ImageDetections, average_precision, coco_results
from predet.evaluation.loop import evaluation_mode, with_progress
from predet.ops.selective_search import Regions, rank

COUNTS = (1, 10, 30, 100)
METRICS = ("AP", "AP50", "AP75", *(f"AR{count}" for count in COUNTS))


def proposal_metrics(
    dataset: DetectionDataset, found: Sequence[ImageDetections]
) -> dict[str, float]:
    """Class-agnostic AP, AP50, AP75 and AR of the best 1, 10, 30 and 100 boxes, in percent.

    Args:
        dataset: the annotations; images that are not in `found` have no boxes.
        found: scored boxes; their classes are not looked at. AP looks at the best 100 of an image.

    Raises:
        ValueError: the data set has no annotations, a box of an image that it does not have, an
            image twice, or a box or score that is not finite.
    """
    if not len(dataset.boxes):
        raise ValueError(f"data set {dataset.name!r} has no annotations to find")
    ids = [image.image_id for image in found]
    unknown = set(ids) - set(dataset.image_ids.tolist())
    if unknown:
        raise ValueError(f"data set {dataset.name!r} has no image of id {min(unknown)}")
    if len(set(ids)) < len(ids):
        raise ValueError("boxes of an image are given twice")
    for image in found:
        if not (np.isfinite(image.boxes).all() and np.isfinite(image.scores).all()):
            raise ValueError(f"image {image.image_id}: boxes or scores are not finite")
    truth = to_content(dataset)
    truth["categories"] = [{"id": 1, "name": "object"}]
    truth["annotations"] = [{**entry, "category_id": 1} for entry in truth["annotations"]]
    same = [image._replace(classes=np.zeros(len(image.scores), np.int64)) for image in found]
    metrics = average_precision(truth, coco_results(same, [1]), max_dets=COUNTS)
    return {name: metrics[name] for name in METRICS}


def boxes_of_detector(
    detector: nn.Module, loader: Iterable[list[dict[str, Any]]]
) -> list[ImageDetections]:
    """One box for each query of a detector, scored by its best class.

    Args:
        detector: has `label(batch)`, as all of predet's have.
        loader: batches of images.
    """
    found = []
    with evaluation_mode(detector), torch.no_grad():
        for batch in with_progress(loader, "proposals"):
            for sample, instances in zip(batch, detector.label(batch), strict=True):
                instances = instances.to("cpu")
                found.append(
                    _detections(
                        int(sample["image_id"]),
                        instances.pred_boxes.tensor.float().numpy(),
                        instances.scores.float().numpy(),
                    )
                )
    return found


def boxes_of_store(
    dataset: DetectionDataset, store: BoxStore, *, top_k: int | None
) -> list[ImageDetections]:
    """The best `top_k` boxes (None: all) of each image of a store, by score.

    Raises:
        ValueError: the store lacks an image, or was made from others.
    """
    check_store(dataset, store)
    found = []
    for index in range(len(dataset)):
        if dataset.key(index) not in store:
            continue
        row = store[dataset.key(index)]
        order = np.argsort(-row.scores, kind="stable")[:top_k]
        found.append(
            _detections(int(dataset.image_ids[index]), row.boxes[order], row.scores[order])
        )
    return found


def boxes_of_regions(
    regions: Mapping[int, Regions], *, top_k: int | None, seed: int
) -> list[ImageDetections]:
    """The first `top_k` regions (None: all) of each image in an order drawn from `seed`.

    Args:
        regions: by image id, in the frame of the image.
    """
    return [
        boxes_in_order(image_id, one.boxes[rank(one, (seed, image_id))][:top_k])
        for image_id, one in regions.items()
    ]


def boxes_in_order(image_id: int, boxes: np.ndarray) -> ImageDetections:
    """The n boxes of an image score 1 - rank / n, rank 0 being the first."""
    return _detections(image_id, boxes, 1 - np.arange(len(boxes)) / max(len(boxes), 1))


def check_store(dataset: DetectionDataset, store: BoxStore) -> None:
    """Compare images and sizes; images that the store skipped have no boxes.

    Raises:
        ValueError: the store lacks an image, or was made from others.
    """
    skipped_images(dataset, store)
    heights, widths = np.zeros((2, len(dataset)), np.int32)
    for columns, index in rows_of(dataset, store):
        here = index >= 0
        heights[index[here]], widths[index[here]] = columns.heights[here], columns.widths[here]
    check_sizes(dataset, store, heights, widths)


def _detections(image_id: int, boxes: np.ndarray, scores: np.ndarray) -> ImageDetections:
    return ImageDetections(
        image_id=image_id,
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        scores=np.asarray(scores, np.float32),
        classes=np.zeros(len(scores), np.int64),
    )
