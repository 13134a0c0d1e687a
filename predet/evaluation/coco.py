"""COCO evaluation of a detector on a `DetectionDataset`, over any number of processes."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from predet.d2 import DatasetEvaluator, comm
from predet.data.dataset import DetectionDataset
from predet.data.formats.coco_json import to_content
from predet.evaluation.average_precision import ImageDetections, average_precision, coco_results
from predet.evaluation.explain import explain_zero

logger = logging.getLogger(__name__)

RESULTS_FILE = "coco_results.json"
LOW_AP50 = 1.0  # percent; below it the log says what may be wrong


class COCOEvaluator(DatasetEvaluator):
    """AP and AR as COCO defines them, in percent.

    Detections are gathered over all processes and evaluated once, on the main one. The ground truth
    is the data set's, crowd regions included, with the areas as annotated. Images that were never
    processed (a bad file that the loader skipped) count as images without detections.

    Args:
        dataset: what the loader reads.
        max_dets: detections of an image and class that count (AP at the last, AR at each); one
            number n means (1, 10, n).
        output_dir: where to write the detections as COCO results; None writes nothing.
    """

    def __init__(
        self,
        *,
        dataset: DetectionDataset,
        max_dets: int | Sequence[int] = 100,
        output_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.dataset = dataset
        self.max_dets = _counts(max_dets)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self._detections: list[ImageDetections] = []

    def reset(self) -> None:
        """Forget all detections."""
        self._detections = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take the detections of a batch.

        Args:
            inputs: the batch; of each image only `image_id` is read.
            outputs: for each image `{"instances": Instances}` with `pred_boxes`, `scores` and
                `pred_classes`, in the frame of the original image.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            found = output["instances"].to("cpu")
            self._detections.append(
                ImageDetections(
                    image_id=int(sample["image_id"]),
                    boxes=found.pred_boxes.tensor.float().numpy().reshape(-1, 4),
                    scores=found.scores.float().numpy(),
                    classes=found.pred_classes.numpy().astype(np.int64),
                )
            )

    def evaluate(self) -> dict[str, float]:
        """The metrics of `average_precision`; an empty dict on all processes but the main one.

        Raises:
            ValueError: nothing was processed, or a class that the data set does not have.
        """
        gathered = comm.gather(self._detections)
        if not comm.is_main_process():
            return {}
        detections = self._clean([image for part in gathered for image in part])
        truth = to_content(self.dataset)
        results = coco_results(detections, self.dataset.category_ids)
        self._write(results)
        metrics = average_precision(truth, results, max_dets=self.max_dets)
        _say_what_was_evaluated(metrics, len(detections), len(results), self.dataset.name)
        if not metrics["AP50"] >= LOW_AP50:  # NaN included
            logger.warning(explain_zero(truth, detections, self.dataset.class_names))
        return metrics

    def _clean(self, detections: list[ImageDetections]) -> list[ImageDetections]:
        """One entry an image, ordered by image id, without what is not finite; classes checked."""
        by_image = {image.image_id: image for image in reversed(detections)}
        self._check_images(by_image.keys(), len(detections))
        cleaned, dropped = [], 0
        for _, image in sorted(by_image.items()):
            self._check_classes(image)
            finite = np.isfinite(image.boxes).all(axis=1) & np.isfinite(image.scores)
            dropped += int((~finite).sum())
            cleaned.append(
                ImageDetections(
                    image.image_id, image.boxes[finite], image.scores[finite], image.classes[finite]
                )
            )
        if dropped:
            logger.warning("%d detections are not finite and do not count", dropped)
        return cleaned

    def _check_images(self, image_ids: Set[int], processed: int) -> None:
        if not image_ids:
            raise ValueError("nothing to evaluate: no image was processed since reset()")
        unknown = image_ids - set(self.dataset.image_ids.tolist())
        if unknown:
            raise ValueError(
                f"image id {min(unknown)} was evaluated, but the data set {self.dataset.name} has "
                "no such image: do loader and evaluator use the same data set?"
            )
        if processed > len(image_ids):
            logger.warning(
                "%d images were processed more than once; their first result counts",
                processed - len(image_ids),
            )
        if len(image_ids) < len(self.dataset):
            logger.warning(
                "%d of %d images were not processed: they count as images without detections",
                len(self.dataset) - len(image_ids),
                len(self.dataset),
            )

    def _check_classes(self, image: ImageDetections) -> None:
        names = self.dataset.class_names
        outside = image.classes[(image.classes < 0) | (image.classes >= len(names))]
        if len(outside):
            raise ValueError(
                f"the model predicts class {outside[0]}, but the data set {self.dataset.name} has "
                f"{len(names)} classes {list(names)[:5]}: was the model made for other data?"
            )

    def _write(self, results: list[dict[str, Any]]) -> None:
        if self.output_dir is None:
            return
        self.output_dir.mkdir(parents=True, exist_ok=True)
        temporary = self.output_dir / f".{RESULTS_FILE}.tmp"
        temporary.write_text(json.dumps(results))
        os.replace(temporary, self.output_dir / RESULTS_FILE)


def _counts(max_dets: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(max_dets, int):
        return (*(count for count in (1, 10) if count < max_dets), max_dets)
    return tuple(int(count) for count in max_dets)


def _say_what_was_evaluated(
    metrics: dict[str, float], images: int, detections: int, name: str
) -> None:
    logger.info("%s: %d detections in %d images evaluated", name, detections, images)
    absent = [key[3:] for key, value in metrics.items() if key[:3] == "AP/" and math.isnan(value)]
    if absent:
        logger.info(
            "%d classes have no ground truth here, so no AP: %s",
            len(absent),
            ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else ""),
        )
