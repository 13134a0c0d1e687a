"""COCO files made at random, with everything that makes evaluation hard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest


def make_truth(
    rng: np.random.Generator, *, images: int = 12, classes: int = 4, crowd: float = 0.15
) -> dict[str, Any]:
    """Ground truth of many sizes; some images have none, the last class has none."""
    annotations = []
    for image in range(1, images + 1):
        for _ in range(int(rng.integers(0, 12))):
            size = np.exp(rng.uniform(np.log(4), np.log(250), 2))
            start = rng.uniform(0, 300, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": 10 * int(rng.integers(1, classes)),
                    "bbox": [*start.tolist(), *size.tolist()],
                    "area": float(size.prod() * rng.uniform(0.5, 1.0)),
                    "iscrowd": int(rng.random() < crowd),
                }
            )
    return {
        "images": [{"id": image} for image in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": 10 * c, "name": f"class{c}"} for c in range(1, classes + 1)],
    }


def make_results(
    rng: np.random.Generator, truth: dict[str, Any], *, noise: float = 0.1, ties: bool = True
) -> list[dict[str, Any]]:
    """Jittered, doubled and wrongly classified copies of the truth, and boxes from nowhere."""
    results = []
    for annotation in truth["annotations"]:
        for _ in range(int(rng.integers(0, 4))):
            box = np.asarray(annotation["bbox"])
            box = box + rng.normal(0, noise, 4) * np.asarray([box[2], box[3], box[2], box[3]])
            category = annotation["category_id"]
            results.append((annotation["image_id"], category, [*box[:2], *np.abs(box[2:])]))
    for _ in range(60):
        box = [*rng.uniform(0, 300, 2), *rng.uniform(0, 100, 2)]
        image = int(rng.integers(1, len(truth["images"]) + 1))
        results.append((image, 10 * int(rng.integers(1, 5)), box))
    scores = rng.random(len(results))
    if ties:
        scores = np.round(scores, 1)
    return [
        {"image_id": i, "category_id": c, "bbox": [float(v) for v in b], "score": float(s)}
        for (i, c, b), s in zip(results, scores, strict=True)
    ]


@pytest.fixture
def random_truth() -> Callable[..., dict[str, Any]]:
    return make_truth


@pytest.fixture
def random_results() -> Callable[..., list[dict[str, Any]]]:
    return make_results


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
