"""All metrics equal those of pycocotools, an independent implementation."""

from __future__ import annotations

import contextlib
import copy
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from predet.evaluation.average_precision import (
    ImageDetections,
    average_precision,
    coco_results,
)

Make = Callable[..., Any]

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def oracle(truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float]:
    """pycocotools' twelve numbers in percent, and AP of each class evaluated by itself."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        found = coco.loadRes(copy.deepcopy(results))

        def run(categories: list[int]) -> np.ndarray:
            evaluation = COCOeval(coco, found, "bbox")
            evaluation.params.catIds = categories
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            return evaluation.stats

        ids = [category["id"] for category in truth["categories"]]
        values = dict(zip(NAMES, run(ids), strict=True))
        for category in truth["categories"]:
            values[f"AP/{category['name']}"] = run([category["id"]])[0]
    return {name: math.nan if value == -1 else 100 * value for name, value in values.items()}


def assert_equal(got: dict[str, float], expected: dict[str, float]) -> None:
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=1e-9, nan_ok=True), name


@pytest.mark.parametrize("seed", range(8))
def test_random_inputs(seed: int, random_truth: Make, random_results: Make) -> None:
    rng = np.random.default_rng(seed)
    truth = random_truth(rng)
    results = random_results(rng, truth, noise=[0.02, 0.1, 0.3][seed % 3], ties=seed % 2 == 0)
    got = average_precision(truth, results)
    assert_equal(got, oracle(truth, results))
    assert 0 < got["AP"] < got["AP50"] < 100
    assert math.isnan(got["AP/class4"])


def test_more_than_a_hundred_detections_an_image(
    rng: np.random.Generator, random_truth: Make, random_results: Make
) -> None:
    truth = random_truth(rng, images=3)
    results = [result for _ in range(4) for result in random_results(rng, truth)]
    for result in results:
        result["category_id"] = 10
    assert max(sum(r["image_id"] == i for r in results) for i in (1, 2, 3)) > 100
    assert_equal(average_precision(truth, results), oracle(truth, results))


@pytest.mark.parametrize("case", ["crowds only", "one", "order of ids", "boxes without area"])
def test_degenerate_inputs(
    rng: np.random.Generator, case: str, random_truth: Make, random_results: Make
) -> None:
    truth = random_truth(rng, crowd=1.0 if case == "crowds only" else 0.1)
    results = random_results(rng, truth)
    if case == "one":
        results = results[:1]
    elif case == "order of ids":
        truth["categories"].reverse()
        truth["images"].reverse()
    elif case == "boxes without area":
        for result in results[::2]:
            result["bbox"][2] = 0.0
    expected = oracle(truth, results)
    if case == "order of ids":
        expected = {name: expected[name] for name in average_precision(truth, results)}
    assert_equal(average_precision(truth, results), expected)


def test_no_predictions_are_zero_and_classes_without_truth_have_no_ap(random_truth: Make) -> None:
    truth = random_truth(np.random.default_rng(3))
    metrics = average_precision(truth, [])
    assert {metrics[name] for name in NAMES} == {0.0}
    assert metrics["AP/class1"] == 0.0
    assert math.isnan(metrics["AP/class4"])


def test_no_ground_truth_is_undefined(random_truth: Make, random_results: Make) -> None:
    truth = random_truth(np.random.default_rng(3))
    results = random_results(np.random.default_rng(3), truth)
    truth["annotations"] = []
    for predictions in ([], results):
        assert all(math.isnan(v) for v in average_precision(truth, predictions).values())


def test_perfect_predictions_are_hundred_and_inputs_stay_as_they_are(random_truth: Make) -> None:
    truth = random_truth(np.random.default_rng(3), crowd=0.0)
    results = [
        {**{k: a[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.5}
        for a in truth["annotations"]
    ]
    before = copy.deepcopy((truth["annotations"][0]["bbox"], results))
    metrics = average_precision(truth, results)
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "AP/class1"):
        assert metrics[name] == pytest.approx(100), name
    assert (truth["annotations"][0]["bbox"], results) == before


def test_other_numbers_of_detections(
    rng: np.random.Generator, random_truth: Make, random_results: Make
) -> None:
    truth = random_truth(rng)
    results = random_results(rng, truth)
    usual = average_precision(truth, results)
    other = average_precision(truth, results, max_dets=(1, 3, 10, 300))
    assert other["AR1"] == usual["AR1"]
    assert other["AR10"] == usual["AR10"]
    assert usual["AR1"] < other["AR3"] < usual["AR10"]
    assert "AR100" not in other
    for wrong in ((), (10, 1), (0, 10), (5, 5)):
        with pytest.raises(ValueError, match="max_dets"):
            average_precision(truth, results, max_dets=wrong)


def test_detections_become_coco_results() -> None:
    image = ImageDetections(
        image_id=7,
        boxes=np.asarray([[10, 20, 40, 25], [0, 0, 1, 1]], dtype=np.float32),
        scores=np.asarray([0.5, 0.25], dtype=np.float32),
        classes=np.asarray([1, 0]),
    )
    assert coco_results([image], category_ids=[3, 90]) == [
        {"image_id": 7, "category_id": 90, "bbox": [10.0, 20.0, 30.0, 5.0], "score": 0.5},
        {"image_id": 7, "category_id": 3, "bbox": [0.0, 0.0, 1.0, 1.0], "score": 0.25},
    ]
    assert image.boxes[0].tolist() == [10, 20, 40, 25]
