"""AP of resampled images against pycocotools on data sets that really repeat their images."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from predet.evaluation.resampling import match_images, resample_weights, resampled_ap


def repeated(
    truth: dict[str, Any], results: list[dict[str, Any]], weights: np.ndarray
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The data set and the results with every image as often as its weight says."""
    images, annotations, copies = [], [], []
    for image, weight in zip(truth["images"], weights, strict=True):
        for _ in range(weight):
            new = {"id": len(images) + 1}
            images.append(new)
            for annotation in truth["annotations"]:
                if annotation["image_id"] == image["id"]:
                    row = {"id": len(annotations) + 1, "image_id": new["id"]}
                    annotations.append({**annotation, **row})
            copies += [
                {**result, "image_id": new["id"]}
                for result in results
                if result["image_id"] == image["id"]
            ]
    return {**truth, "images": images, "annotations": annotations}, copies


def pycocotools_ap(truth: dict[str, Any], results: list[dict[str, Any]]) -> np.ndarray:
    """AP, then AP at each threshold, in percent."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (T, R, K)
    by_threshold = [100 * row[row > -1].mean() for row in precision]
    return np.asarray([100 * precision[precision > -1].mean(), *by_threshold])


@pytest.mark.parametrize("seed", range(4))
def test_weights_are_repetitions(
    random_truth: Callable[..., Any], random_results: Callable[..., Any], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    truth = random_truth(rng)
    results = random_results(rng, truth, ties=False)
    matches = match_images(truth, results)
    weights = np.concatenate([np.ones((1, 12), int), rng.integers(0, 4, (5, 12))])
    expected = [pycocotools_ap(*repeated(truth, results, row)) for row in weights]
    np.testing.assert_allclose(resampled_ap(matches, weights), expected, rtol=0, atol=1e-10)


def test_ties_do_not_matter_for_the_test_set_itself(
    random_truth: Callable[..., Any], random_results: Callable[..., Any], rng: np.random.Generator
) -> None:
    truth = random_truth(rng)
    results = random_results(rng, truth, ties=True)
    got = resampled_ap(match_images(truth, results), np.ones((1, 12), int))
    np.testing.assert_allclose(got[0], pycocotools_ap(truth, results), rtol=0, atol=1e-10)


def test_only_the_best_detections_count(
    random_truth: Callable[..., Any], random_results: Callable[..., Any], rng: np.random.Generator
) -> None:
    truth = random_truth(rng)
    results = random_results(rng, truth, ties=False)
    few = resampled_ap(match_images(truth, results, max_dets=1), np.ones((1, 12), int))[0, 0]
    all_of_them = resampled_ap(match_images(truth, results), np.ones((1, 12), int))[0, 0]
    assert few < all_of_them


def test_no_detections_and_no_objects(random_truth: Callable[..., Any]) -> None:
    truth = random_truth(np.random.default_rng(1))
    assert resampled_ap(match_images(truth, []), np.ones((1, 12), int))[0, 0] == 0.0
    empty = {**truth, "annotations": []}
    assert np.isnan(resampled_ap(match_images(empty, []), np.ones((1, 12), int))).all()


def test_wrong_weights_are_refused(random_truth: Callable[..., Any]) -> None:
    matches = match_images(random_truth(np.random.default_rng(1)), [])
    with pytest.raises(ValueError, match=r"weights must be \(resamples, 12\)"):
        resampled_ap(matches, np.ones((3, 11), int))


def test_resamples_draw_as_many_images_as_there_are() -> None:
    weights = resample_weights(40, resamples=500, seed=3)
    assert (weights.sum(axis=1) == 40).all()
    np.testing.assert_allclose(weights.mean(), 1.0)
    np.testing.assert_allclose(weights.var(), 1 - 1 / 40, rtol=0.05)  # of a binomial count
    assert (weights == resample_weights(40, resamples=500, seed=3)).all()
    assert (weights != resample_weights(40, resamples=500, seed=4)).any()
