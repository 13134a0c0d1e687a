"""The evaluator on data sets: same numbers as pycocotools, on one process and on two."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from predet.d2 import Boxes, DatasetEvaluator, Instances, launch
from predet.data.dataset import DetectionDataset
from predet.evaluation.average_precision import average_precision
from predet.evaluation.coco import COCOEvaluator
from predet.evaluation.loop import evaluate


def make_dataset(truth: dict[str, Any]) -> DetectionDataset:
    """The random COCO file as a data set; image ids and category ids are not contiguous."""
    annotations = truth["annotations"]
    images = [image["id"] for image in truth["images"]]
    counts = [sum(a["image_id"] == i for a in annotations) for i in images]
    boxes = np.asarray([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return DetectionDataset(
        name="random",
        root="/nowhere",
        class_names=[c["name"] for c in truth["categories"]],
        category_ids=[c["id"] for c in truth["categories"]],
        keys=[f"{i}.jpg" for i in images],
        image_ids=images,
        heights=[600] * len(images),
        widths=[600] * len(images),
        offsets=np.cumsum([0, *counts]),
        boxes=boxes,
        classes=[a["category_id"] // 10 - 1 for a in annotations],
        iscrowd=[bool(a["iscrowd"]) for a in annotations],
        areas=[a["area"] for a in annotations],
    )


def make_outputs(results: list[dict[str, Any]], image_id: int) -> dict[str, Instances]:
    own = [r for r in results if r["image_id"] == image_id]
    boxes = torch.tensor([r["bbox"] for r in own], dtype=torch.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return {
        "instances": Instances(
            (600, 600),
            pred_boxes=Boxes(boxes.float()),
            scores=torch.tensor([r["score"] for r in own]),
            pred_classes=torch.tensor([r["category_id"] // 10 - 1 for r in own]),
        )
    }


class Replay(nn.Module):
    """A model that has learned the results by heart."""

    def __init__(self, results: list[dict[str, Any]]) -> None:
        super().__init__()
        self.results = results
        self.frozen = nn.Dropout()

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        assert not self.training
        assert not torch.is_grad_enabled()
        return [make_outputs(self.results, sample["image_id"]) for sample in batch]


def batches(truth: dict[str, Any]) -> list[list[dict[str, Any]]]:
    ids = [image["id"] for image in truth["images"]]
    return [[{"image_id": i} for i in ids[start : start + 5]] for start in range(0, len(ids), 5)]


def case(seed: int, make_truth: Any, make_results: Any) -> tuple[dict[str, Any], list[Any]]:
    """Annotations sorted by image, as the data set holds them."""
    rng = np.random.default_rng(seed)
    truth = make_truth(rng)
    truth["annotations"].sort(key=lambda annotation: annotation["image_id"])
    results = make_results(rng, truth)
    results.sort(key=lambda result: result["image_id"])
    return truth, results


@pytest.mark.parametrize("seed", range(3))
def test_the_numbers_are_those_of_the_files(
    seed: int, random_truth: Callable[..., Any], random_results: Callable[..., Any], tmp_path: Path
) -> None:
    truth, results = case(seed, random_truth, random_results)
    evaluator = COCOEvaluator(dataset=make_dataset(truth), output_dir=tmp_path / "eval")
    got = evaluate(Replay(results), batches(truth), evaluator)
    expected = average_precision(truth, results)
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=0.02, nan_ok=True), name  # boxes are fp32
    written = json.loads((tmp_path / "eval/coco_results.json").read_text())
    assert len(written) == len(results)
    assert average_precision(truth, written) == pytest.approx(got, nan_ok=True)
    assert {r["category_id"] for r in written} <= {10, 20, 30, 40}


def test_areas_are_those_annotated(random_truth: Callable[..., Any]) -> None:
    truth = random_truth(np.random.default_rng(0), crowd=0.0)
    truth["annotations"] = truth["annotations"][:1]
    truth["annotations"][0].update(bbox=[0, 0, 60, 60], area=900.0)  # a small object in a large box
    result = {"image_id": 1, "category_id": 0, "bbox": [0, 0, 60, 60], "score": 1.0}
    annotation = truth["annotations"][0]
    result.update(image_id=annotation["image_id"], category_id=annotation["category_id"])
    evaluator = COCOEvaluator(dataset=make_dataset(truth))
    metrics = evaluate(Replay([result]), batches(truth), evaluator)
    assert metrics["APs"] == pytest.approx(100)
    assert math.isnan(metrics["APm"])


def test_modes_come_back_also_after_an_error(random_truth: Callable[..., Any]) -> None:
    truth = random_truth(np.random.default_rng(0))
    model = Replay([])
    model.train()
    model.frozen.eval()
    evaluate(model, batches(truth), COCOEvaluator(dataset=make_dataset(truth)))
    assert (model.training, model.frozen.training) == (True, False)

    class Failing(DatasetEvaluator):
        def process(self, inputs: Any, outputs: Any) -> None:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        evaluate(model, batches(truth), Failing())
    assert (model.training, model.frozen.training) == (True, False)


def test_images_that_were_not_processed_count_as_missed(
    random_truth: Callable[..., Any],
    random_results: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    truth, results = case(1, random_truth, random_results)
    evaluator = COCOEvaluator(dataset=make_dataset(truth))
    got = evaluate(Replay(results), batches(truth)[:1], evaluator)
    expected = average_precision(truth, [r for r in results if r["image_id"] <= 5])
    assert got["AP50"] == pytest.approx(expected["AP50"], abs=0.02)
    assert "7 of 12 images were not processed" in caplog.text


def test_an_image_processed_twice_counts_once(
    random_truth: Callable[..., Any],
    random_results: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    truth, results = case(1, random_truth, random_results)
    once = COCOEvaluator(dataset=make_dataset(truth))
    expected = evaluate(Replay(results), batches(truth), once)
    twice = COCOEvaluator(dataset=make_dataset(truth))
    got = evaluate(Replay(results), [*batches(truth), *batches(truth)[:1]], twice)
    assert got == pytest.approx(expected, nan_ok=True)
    assert "5 images were processed more than once" in caplog.text


def test_nothing_found_is_zero_and_explained(
    random_truth: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    truth = random_truth(np.random.default_rng(0))
    evaluator = COCOEvaluator(dataset=make_dataset(truth))
    with caplog.at_level("INFO"):
        metrics = evaluate(Replay([]), batches(truth), evaluator)
    assert metrics["AP"] == metrics["AP50"] == metrics["AR100"] == 0.0
    assert "found nothing at all in 12 images" in caplog.text
    assert "1 classes have no ground truth here, so no AP: class4" in caplog.text
    assert math.isnan(metrics["AP/class4"])


def test_no_ground_truth_is_explained(
    random_truth: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    truth = random_truth(np.random.default_rng(0))
    truth["annotations"] = []
    metrics = evaluate(Replay([]), batches(truth), COCOEvaluator(dataset=make_dataset(truth)))
    assert math.isnan(metrics["AP"])
    assert "none of the 12 images has a ground-truth box" in caplog.text


def test_what_is_not_finite_does_not_count(
    random_truth: Callable[..., Any],
    random_results: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    truth, results = case(1, random_truth, random_results)
    expected = evaluate(Replay(results), batches(truth), COCOEvaluator(dataset=make_dataset(truth)))
    bad = [
        {**results[0], "score": math.nan},
        {**results[0], "bbox": [0.0, math.inf, 1.0, 1.0]},
    ]
    got = evaluate(
        Replay([*bad, *results]), batches(truth), COCOEvaluator(dataset=make_dataset(truth))
    )
    assert got == pytest.approx(expected, nan_ok=True)
    assert "2 detections are not finite" in caplog.text


def test_other_classes_and_images_are_refused(random_truth: Callable[..., Any]) -> None:
    truth = random_truth(np.random.default_rng(0))
    result = {"image_id": 1, "category_id": 50, "bbox": [0, 0, 60, 60], "score": 1.0}
    with pytest.raises(
        ValueError, match=r"predicts class 4, but the data set random has 4 classes"
    ):
        evaluate(Replay([result]), batches(truth), COCOEvaluator(dataset=make_dataset(truth)))
    with pytest.raises(ValueError, match="image id 99 was evaluated"):
        evaluate(Replay([]), [[{"image_id": 99}]], COCOEvaluator(dataset=make_dataset(truth)))
    with pytest.raises(ValueError, match="no image was processed"):
        evaluate(Replay([]), [], COCOEvaluator(dataset=make_dataset(truth)))


def test_max_dets_may_be_one_number_or_several(random_truth: Callable[..., Any]) -> None:
    dataset = make_dataset(random_truth(np.random.default_rng(0)))
    assert COCOEvaluator(dataset=dataset).max_dets == (1, 10, 100)
    assert COCOEvaluator(dataset=dataset, max_dets=300).max_dets == (1, 10, 300)
    assert COCOEvaluator(dataset=dataset, max_dets=10).max_dets == (1, 10)
    assert COCOEvaluator(dataset=dataset, max_dets=[1, 30]).max_dets == (1, 30)


def run_on_two(truth: dict[str, Any], results: list[Any], folder: str) -> None:
    from predet.d2 import comm

    rank = comm.get_rank()
    share = batches(truth)[rank::2]
    metrics = evaluate(Replay(results), share, COCOEvaluator(dataset=make_dataset(truth)))
    Path(folder, f"{rank}.json").write_text(json.dumps(metrics))


def test_two_processes_give_the_result_of_one_on_both(
    random_truth: Callable[..., Any], random_results: Callable[..., Any], tmp_path: Path
) -> None:
    truth, results = case(2, random_truth, random_results)
    expected = evaluate(Replay(results), batches(truth), COCOEvaluator(dataset=make_dataset(truth)))
    launch(run_on_two, 2, dist_url="auto", args=(truth, results, str(tmp_path)))
    for rank in (0, 1):
        got = json.loads((tmp_path / f"{rank}.json").read_text())
        assert got == pytest.approx(expected, nan_ok=True)
