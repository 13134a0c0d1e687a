"""AP of resampled test images: how far a result depends on which images happened to be in the test.

Each image's detections are matched to its objects once, by pycocotools. A resample gives each image
a weight, the number of times that it was drawn; AP of the resample is that of a data set in which
every image stands that often. Only hits move the precision-recall curve, so the work is
proportional to the number of detections plus that of hits.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
CHUNK = 64  # resamples at once, so that arrays stay in the cache


class ClassMatches(NamedTuple):
    """Detections of one class over all images, best score first.

    D detections, T IoU thresholds, I images. What lies in a crowd region (or matches one) does not
    count at that threshold.
    """

    image: np.ndarray  # (D,) index of the image
    hit: np.ndarray  # (T, D) bool
    counts: np.ndarray  # (T, D) bool; False: neither hit nor miss
    objects: np.ndarray  # (I,) number of objects to find


class Matches(NamedTuple):
    """What AP needs of one evaluation."""

    image_ids: tuple[int, ...]
    classes: tuple[ClassMatches, ...]


def match_images(
    ground_truth: dict[str, Any], results: Sequence[dict[str, Any]], *, max_dets: int = 100
) -> Matches:
    """Match detections to objects, as COCO does for objects of all sizes.

    Args:
        ground_truth: content of a COCO file.
        results: list of COCO results (not changed).
        max_dets: best detections of an image and class that count.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(_coco(ground_truth), _detections(ground_truth, results), "bbox")
        evaluation.params.maxDets = [max_dets]
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.params.iouThrs = IOU_THRESHOLDS
        evaluation.evaluate()
    images = len(evaluation.params.imgIds)
    entries = evaluation.evalImgs  # class by class, image by image; None: nothing there
    return Matches(
        tuple(int(image_id) for image_id in evaluation.params.imgIds),
        tuple(
            _class_matches(entries[start : start + images])
            for start in range(0, len(entries), images)
        ),
    )


def resample_weights(num_images: int, *, resamples: int, seed: int) -> np.ndarray:
    """How often each image is drawn in each resample, (resamples, num_images) int64."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=resamples)


def resampled_ap(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """AP in percent under each row of image weights.

    Args:
        weights: (B, I) whole numbers, not negative; ones give the AP of the test set itself.

    Returns:
        (B, 1 + T): AP (mean over thresholds), then AP at each of `IOU_THRESHOLDS`. The mean is
        over the classes with objects in the resample; NaN where there is none.
    """
    images = len(matches.image_ids)
    if weights.ndim != 2 or weights.shape[1] != images:
        raise ValueError(f"weights must be (resamples, {images}), got {tuple(weights.shape)}")
    parts = [
        np.stack([_class_ap(one, weights[start : start + CHUNK]) for one in matches.classes])
        for start in range(0, len(weights), CHUNK)
    ]
    by_class = 100 * np.concatenate(parts, axis=1)  # (K, B, T)
    defined = ~np.isnan(by_class)
    count = defined.sum(axis=0)
    total = np.where(defined, by_class, 0.0).sum(axis=0)
    by_threshold = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return np.concatenate([by_threshold.mean(axis=1, keepdims=True), by_threshold], axis=1)


def _class_ap(matches: ClassMatches, weights: np.ndarray) -> np.ndarray:
    """AP of one class as a fraction, (B, T); NaN where the resample has no object of it."""
    objects = weights @ matches.objects  # (B,)
    drawn = weights[:, matches.image]  # (B, D)
    seen = np.cumsum(drawn, axis=1)
    result = np.full((len(weights), len(matches.hit)), np.nan)
    has_objects = objects > 0
    for threshold, (hit, counts) in enumerate(zip(matches.hit, matches.counts, strict=True)):
        at = np.flatnonzero(hit)
        hits = np.cumsum(drawn[:, at], axis=1)  # (B, H)
        ignored = np.cumsum(drawn * ~counts, axis=1)[:, at] if not counts.all() else 0
        precision = hits / np.maximum(seen[:, at] - ignored, 1)
        # The best precision at this recall or beyond it.
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = hits / np.maximum(objects, 1)[:, None]
        reached = np.searchsorted(RECALLS, recall, side="right")  # steps at or below this recall
        reached[hits == 0] = 0  # only hits of images that were not drawn so far
        new = np.diff(reached, axis=1, prepend=0)
        result[:, threshold] = (envelope * new).sum(axis=1) / len(RECALLS)
    result[~has_objects] = np.nan
    return result


def _class_matches(entries: Sequence[dict[str, Any] | None]) -> ClassMatches:
    """Join the evaluations of one class in all images."""
    thresholds = len(IOU_THRESHOLDS)
    image, scores = [np.zeros(0, np.int64)], [np.zeros(0)]
    hit, counts = [np.zeros((thresholds, 0), bool)], [np.zeros((thresholds, 0), bool)]
    objects = np.zeros(len(entries), dtype=np.int64)
    for index, entry in enumerate(entries):
        if entry is None:
            continue
        objects[index] = np.sum(np.asarray(entry["gtIgnore"]) == 0)
        number = len(entry["dtScores"])
        image.append(np.full(number, index))
        scores.append(np.asarray(entry["dtScores"], dtype=np.float64))
        ignored = np.asarray(entry["dtIgnore"], dtype=bool).reshape(thresholds, number)
        matched = np.asarray(entry["dtMatches"]).reshape(thresholds, number) > 0
        hit.append(matched & ~ignored)
        counts.append(~ignored)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return ClassMatches(
        image=np.concatenate(image)[order],
        hit=np.concatenate(hit, axis=1)[:, order],
        counts=np.concatenate(counts, axis=1)[:, order],
        objects=objects,
    )


def _coco(content: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def _detections(ground_truth: dict[str, Any], results: Sequence[dict[str, Any]]) -> COCO:
    """The results as annotations of the same images; pycocotools' own reader refuses none."""
    annotations = [
        {**result, "id": number, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0}
        for number, result in enumerate(results, start=1)
    ]
    return _coco(
        {
            "images": ground_truth["images"],
            "annotations": annotations,
            "categories": ground_truth["categories"],
        }
    )
