"""The message about zero AP names the reason that was planted."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from predet.evaluation.average_precision import (
    ImageDetections,
    average_precision,
    coco_results,
)
from predet.evaluation.explain import explain_zero

NAMES = ["class1", "class2", "class3", "class4"]


def found(truth: dict[str, Any], change: str) -> list[ImageDetections]:
    """The truth as detections, with one fault."""
    detections = []
    for image in truth["images"]:
        own = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        boxes = np.asarray([a["bbox"] for a in own], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        classes = np.asarray([a["category_id"] // 10 - 1 for a in own], dtype=np.int64)
        scores = np.full(len(own), 0.5, dtype=np.float32)
        if change == "nothing":
            boxes, classes, scores = boxes[:0], classes[:0], scores[:0]
        elif change == "relative":
            boxes = boxes / 1000
        elif change == "shifted ids":
            classes = (classes + 1) % 4
        elif change == "elsewhere":
            boxes = boxes + 2000
        elif change == "drowned":
            wrong = np.tile(np.asarray([[900, 900, 950, 950]], np.float32), (300, 1))
            boxes = np.concatenate([boxes, wrong])
            classes = np.concatenate([classes, np.arange(300) % 3])
            scores = np.concatenate([scores, np.full(300, 0.9, np.float32)])
        detections.append(ImageDetections(image["id"], boxes, scores, classes))
    return detections


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("nothing", "found nothing at all in 12 images"),
        ("relative", "no predicted coordinate is larger than 0"),
        ("shifted ids", r"their classes do not: .*class1 found as class2 \("),
        ("elsewhere", "boxes do not fit: the best IoU of an object is 0.00"),
        ("drowned", "right boxes have lower scores than wrong ones"),
    ],
)
def test_the_reason_is_named(
    rng: np.random.Generator, random_truth: Callable[..., Any], change: str, message: str
) -> None:
    truth = random_truth(rng, crowd=0.0)
    detections = found(truth, change)
    results = coco_results(detections, [10, 20, 30, 40])
    assert average_precision(truth, results)["AP50"] < 5
    assert re.search(message, explain_zero(truth, detections, NAMES))


def test_no_ground_truth_is_named(
    rng: np.random.Generator, random_truth: Callable[..., Any]
) -> None:
    truth = random_truth(rng)
    truth["annotations"] = []
    text = explain_zero(truth, found(truth, ""), NAMES)
    assert "none of the 12 images has a ground-truth box" in text
