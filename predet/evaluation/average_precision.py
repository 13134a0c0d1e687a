"""COCO's average precision and recall of plain arrays, computed by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

AREAS = ("all", "small", "medium", "large")  # up to 32^2, up to 96^2, beyond


class ImageDetections(NamedTuple):
    """What a detector found in one image. N detections, in any order."""

    image_id: int
    boxes: np.ndarray  # (N, 4) float32 absolute xyxy, frame of the original image
    scores: np.ndarray  # (N,) float32
    classes: np.ndarray  # (N,) int64, contiguous


def coco_results(
    detections: Sequence[ImageDetections], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Detections as a list of COCO results: original category ids, boxes xywh."""
    results = []
    for image in detections:
        boxes = image.boxes.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        results += [
            {"image_id": image.image_id, "category_id": category, "bbox": box, "score": score}
            for category, box, score in zip(
                [int(category_ids[label]) for label in image.classes],
                boxes.tolist(),
                image.scores.astype(np.float64).tolist(),
                strict=True,
            )
        ]
    return results


def average_precision(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    *,
    max_dets: Sequence[int] = (1, 10, 100),
) -> dict[str, float]:
    """COCO's metrics, in percent.

    Args:
        ground_truth: content of a COCO file; ids of annotations count from 1. Annotations with
            `iscrowd` are neither hits nor misses. `area` decides between small, medium and large.
        results: list of COCO results (not changed).
        max_dets: numbers of detections of an image and class that count, ascending: AR for each,
            everything else at the last.

    Returns:
        "AP" (IoU .50:.05:.95), "AP50", "AP75", "APs", "APm", "APl", "AR<n>" for each n of
        `max_dets`, "ARs", "ARm", "ARl" and "AP/<class name>" for every class. NaN where there is
        no ground truth to find, 0 where there is and nothing was found.
    """
    return evaluate_loaded(*load(ground_truth, results), max_dets=max_dets)


def load(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> tuple[COCO, COCO]:
    """Index ground truth and results; arguments as of `average_precision`."""
    truth = COCO()
    truth.dataset = ground_truth
    truth.createIndex()
    return truth, truth.loadRes([dict(result) for result in results])


def evaluate_loaded(
    truth: COCO, found: COCO, *, max_dets: Sequence[int] = (1, 10, 100)
) -> dict[str, float]:
    """The metrics of `average_precision` for what `load` gave."""
    counts = list(max_dets)
    if not counts or counts != sorted(set(counts)) or counts[0] < 1:
        raise ValueError(f"max_dets must be ascending counts of at least 1, got {max_dets}")
    evaluation = COCOeval_faster(truth, found, "bbox", print_function=_silent)
    evaluation.params.maxDets = counts
    evaluation.evaluate()
    evaluation.accumulate()

    last = len(counts) - 1
    # T IoU thresholds, R recall steps, K classes by category id, A areas, M max_dets; -1: undefined
    precision = np.asarray(evaluation.eval["precision"])  # (T, R, K, A, M)
    recall = np.asarray(evaluation.eval["recall"])  # (T, K, A, M)
    at = {round(100 * t): i for i, t in enumerate(evaluation.params.iouThrs)}
    metrics = {
        "AP": _mean(precision[:, :, :, 0, last]),
        "AP50": _mean(precision[at[50], :, :, 0, last]),
        "AP75": _mean(precision[at[75], :, :, 0, last]),
    }
    for area, name in enumerate(AREAS[1:], start=1):
        metrics[f"AP{name[0]}"] = _mean(precision[:, :, :, area, last])
    for position, count in enumerate(counts):
        metrics[f"AR{count}"] = _mean(recall[:, :, 0, position])
    for area, name in enumerate(AREAS[1:], start=1):
        metrics[f"AR{name[0]}"] = _mean(recall[:, :, area, last])
    names = {category["id"]: category["name"] for category in truth.dataset["categories"]}
    for position, category in enumerate(evaluation.params.catIds):
        metrics[f"AP/{names[category]}"] = _mean(precision[:, :, position, 0, last])
    return metrics


def _mean(values: np.ndarray) -> float:
    """Percent, over the entries that are defined; NaN where none is."""
    defined = values[values > -1]
    return float(100 * defined.mean()) if len(defined) else float("nan")


def _silent(_message: str) -> None:
    """faster-coco-eval reports its phases through a function; the evaluator reports the result."""
