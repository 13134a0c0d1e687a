#!/usr/bin/env python
"""predet's COCO evaluation against pycocotools, on detections of the size of COCO val2017.

    benchmarks/coco_eval.py

coco_eval: the best of --repeats runs of each side, in turns: evaluation and accumulation, without
the loading of annotations and results. 5000 images of 7.5 objects and 100 detections, 80 classes,
1% crowds, drawn by seed: most objects are found with boxes more or less shifted, the other
detections are chance. All twelve numbers of COCO must be equal.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import figures
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from predet.evaluation.average_precision import evaluate_loaded, load

CLASSES, OBJECTS_PER_IMAGE, DETECTIONS = 80, 7.5, 100
WIDTH, HEIGHT = 640, 480
# In the order of pycocotools' `stats`.
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
TOLERANCE = 1e-12

Loaded = tuple[Any, Any]


class Seconds(NamedTuple):
    wall: float
    processor: float


def coco_eval(args: argparse.Namespace) -> figures.Figure:
    figures.set_threads(1)
    truth, results = draw(args.num_images)
    ours, theirs = [], []
    for turn in range(args.repeats):
        numbers = timed(by_predet, load(truth, results), ours)
        expected = timed(by_pycocotools, load_pycocotools(truth, results), theirs)
        difference = np.abs(numbers - expected).max()
        if difference > TOLERANCE:
            raise AssertionError(f"the numbers differ by {difference}: {numbers} and {expected}")
        figures.say(f"turn {turn + 1}: {ours[-1]}, pycocotools {theirs[-1]}; equal numbers")
    return {
        "ratio": round(min(theirs).wall / min(ours).wall, 3),
        "peer": "pycocotools",
        "ours_seconds": figures.spread(seconds.wall for seconds in ours),
        "peer_seconds": figures.spread(seconds.wall for seconds in theirs),
        # Of processor time, which other programs disturb less.
        "processor_ratio": round(
            min(seconds.processor for seconds in theirs)
            / min(seconds.processor for seconds in ours),
            3,
        ),
        "best_of": args.repeats,
        "numbers": dict(zip(NAMES, numbers.round(6).tolist(), strict=True)),
        "images": args.num_images,
        "detections": len(results),
        "target": 5.0,
        "threads": 1,
    }


def draw(num_images: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Content of a COCO file, and COCO results."""
    rng = np.random.default_rng(0)
    annotations, results = [], []
    for image_id in range(1, num_images + 1):
        count = rng.poisson(OBJECTS_PER_IMAGE)
        boxes, classes = draw_boxes(rng, count), rng.integers(1, CLASSES + 1, count)
        crowds = rng.random(count) < 0.01
        for box, category, crowd in zip(boxes.tolist(), classes.tolist(), crowds, strict=True):
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image_id, "category_id": category,
                 "bbox": box, "area": box[2] * box[3] * 0.7, "iscrowd": int(crowd)}
            )  # fmt: skip
        taken = rng.random(count) < 0.8
        found, labels = boxes[taken], classes[taken]
        confused = rng.random(len(found)) < 0.2
        labels = np.where(confused, rng.integers(1, CLASSES + 1, len(found)), labels)
        shift = rng.normal(0, 0.08, (len(found), 4)) * np.tile(found[:, 2:], 2)
        found = np.maximum(found + shift, 1)
        others = DETECTIONS - len(found)
        all_boxes = np.concatenate([found, draw_boxes(rng, others)])[:DETECTIONS]
        all_labels = np.concatenate([labels, rng.integers(1, CLASSES + 1, others)])[:DETECTIONS]
        scores = np.concatenate([rng.beta(4, 2, len(found)), rng.beta(1, 6, others)])[:DETECTIONS]
        results += [
            {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
            for category, box, score in zip(
                all_labels.tolist(), all_boxes.tolist(), scores.tolist(), strict=True
            )
        ]
    truth = {
        "info": {},
        "images": [{"id": n, "width": WIDTH, "height": HEIGHT} for n in range(1, num_images + 1)],
        "annotations": annotations,
        "categories": [{"id": n, "name": f"class {n}"} for n in range(1, CLASSES + 1)],
    }
    return truth, results


def draw_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) xywh in pixels; sides are log-uniform, as small as COCO's smallest."""
    sides = np.exp(rng.uniform(np.log(8), np.log(400), (count, 2)))
    corners = rng.uniform(0, 1, (count, 2)) * np.maximum([WIDTH, HEIGHT] - sides, 1)
    return np.concatenate([corners, sides], axis=1)


def load_pycocotools(truth: dict[str, Any], results: list[dict[str, Any]]) -> Loaded:
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = COCO()
        annotations.dataset = truth
        annotations.createIndex()
        return annotations, annotations.loadRes([dict(result) for result in results])


def by_predet(loaded: Loaded) -> np.ndarray:
    metrics = evaluate_loaded(*loaded)
    return np.array([metrics[name] for name in NAMES]) / 100


def by_pycocotools(loaded: Loaded) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(*loaded, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def timed(
    evaluate: Callable[[Loaded], np.ndarray], loaded: Loaded, times: list[Seconds]
) -> np.ndarray:
    """The numbers; how long they took is added to `times`."""
    wall, processor = time.perf_counter(), time.process_time()
    numbers = evaluate(loaded)
    times.append(Seconds(time.perf_counter() - wall, time.process_time() - processor))
    return numbers


if __name__ == "__main__":
    figures.main(__doc__, {"coco_eval": coco_eval}, num_images=5000, repeats=3)
