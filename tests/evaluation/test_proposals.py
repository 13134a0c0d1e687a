"""Class-agnostic AP and AR: against pycocotools with useCats=0, and cases worked out by hand."""

from __future__ import annotations

import contextlib
import copy
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from predet.d2 import Boxes, Instances
from predet.data.box_store import BoxRow
from predet.data.box_store_writer import BoxStoreWriter, StoreInfo
from predet.data.dataset import DetectionDataset
from predet.data.formats.coco_json import to_content
from predet.evaluation.average_precision import ImageDetections, coco_results
from predet.evaluation.proposals import (
    METRICS,
    boxes_of_detector,
    boxes_of_regions,
    boxes_of_store,
    proposal_metrics,
)
from predet.ops.selective_search import Regions, rank

Make = Callable[..., Any]


def make_dataset(boxes: list[list[list[float]]], **options: Any) -> DetectionDataset:
    """Images of 100 x 100 pixels with ids 1, 2, ...; classes count up over all boxes, 0 to 2."""
    flat = [box for of_image in boxes for box in of_image]
    return DetectionDataset(
        name="made",
        root="made",
        class_names=("a", "b", "c"),
        category_ids=(3, 7, 90),
        keys=[f"{i}.png" for i in range(len(boxes))],
        image_ids=range(1, len(boxes) + 1),
        heights=[100] * len(boxes),
        widths=[100] * len(boxes),
        offsets=np.cumsum([0, *map(len, boxes)]),
        boxes=np.array(flat, np.float32).reshape(-1, 4),
        classes=np.arange(len(flat)) % 3,
        **options,
    )


def found(image_id: int, boxes: list[list[float]], scores: list[float]) -> ImageDetections:
    classes = np.arange(len(boxes)) % 2  # of no meaning
    return ImageDetections(
        image_id, np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), classes
    )


def random_case(seed: int) -> tuple[DetectionDataset, list[ImageDetections]]:
    """Objects of several classes, some of them crowds, and up to 160 boxes an image near them."""
    rng = np.random.default_rng(seed)

    def draw(count: int) -> np.ndarray:
        start, size = rng.uniform(0, 80, (count, 2)), rng.uniform(3, 60, (count, 2))
        return np.concatenate([start, np.minimum(start + size, 100)], axis=1)

    objects = [draw(int(rng.integers(0, 8))) for _ in range(9)]
    count = sum(map(len, objects))
    dataset = make_dataset([one.tolist() for one in objects], iscrowd=rng.random(count) < 0.15)
    detections = []
    for image_id, one in enumerate(objects[:-1], start=1):  # the last image was not looked at
        near = np.repeat(one, 3, axis=0)
        near = np.clip(near + rng.normal(0, 4, near.shape), 0, 100)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        boxes = np.concatenate([near, draw(int(rng.integers(0, 140)))])
        scores = rng.random(len(boxes))  # no ties: pycocotools breaks them by category
        detections.append(found(image_id, boxes.tolist(), scores.tolist()))
    return dataset, detections


def oracle(dataset: DetectionDataset, detections: list[ImageDetections]) -> dict[str, float]:
    """pycocotools with useCats=0 on the true categories, results with categories of their own."""
    results = coco_results(detections, dataset.category_ids)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(to_content(dataset))
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = [1, 10, 30, 100]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, 0, 0, -1]
    recall = evaluation.eval["recall"][:, 0, 0]
    values = [precision, precision[0], precision[5], *recall.T]
    return {name: 100 * float(value.mean()) for name, value in zip(METRICS, values, strict=True)}


@pytest.mark.parametrize("seed", range(6))
def test_metrics_are_those_of_pycocotools_without_categories(seed: int) -> None:
    dataset, detections = random_case(seed)
    got = proposal_metrics(dataset, detections)
    assert list(got) == list(METRICS)
    expected = oracle(dataset, detections)
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=1e-9), name
    assert got["AR1"] < got["AR10"] < got["AR30"] < got["AR100"] < 100


def test_worked_out_by_hand() -> None:
    """Two objects of two classes; the first box misses, the second and the third hit."""
    dataset = make_dataset([[[0, 0, 10, 10], [50, 50, 70, 70]], []])
    boxes = [[20, 20, 30, 30], [0, 0, 10, 10], [50, 50, 70, 66]]  # IoU 0, 1, 0.8
    got = proposal_metrics(dataset, [found(1, boxes, [0.9, 0.8, 0.7]), found(2, [], [])])
    # Precision at recall 0..1/2 is 2/3 (its envelope), above 1/2 also 2/3: both objects found.
    assert got["AP50"] == pytest.approx(100 * 2 / 3)
    assert got["AP75"] == pytest.approx(100 * 2 / 3)
    # At IoU .85, .90, .95 only the first object is found, second in rank: precision 1/2 up to
    # recall 1/2, that is at 51 of 101 points. At 0.8 rounding of IoU decides nothing: 0.8 >= 0.8.
    assert got["AP"] == pytest.approx(100 * (7 * 2 / 3 + 3 * 51 / 101 / 2) / 10)
    assert got["AR1"] == 0
    assert got["AR10"] == pytest.approx(100 * (7 * 1 + 3 * 0.5) / 10)
    assert got["AR10"] == got["AR30"] == got["AR100"]


def test_counts_cut_each_image_at_its_best_boxes() -> None:
    """Of 200 boxes the right one is at the given rank."""
    dataset = make_dataset([[[40, 40, 60, 60]]])
    wrong = [[float(x), 0, x + 5.0, 5] for x in np.linspace(0, 90, 200)]
    for place, expected in ((0, "AR1"), (9, "AR10"), (10, "AR30"), (99, "AR100"), (100, None)):
        boxes = [*wrong[:place], [40, 40, 60, 60], *wrong[place:]]
        scores = 1 - np.arange(201) / 201
        got = proposal_metrics(dataset, [found(1, boxes, scores.tolist())])
        hits = {name for name in METRICS[3:] if got[name] == 100}
        first = METRICS.index(expected) if expected else len(METRICS)
        assert hits == set(METRICS[first:])


def test_what_cannot_be_measured_is_an_error() -> None:
    dataset = make_dataset([[[0, 0, 10, 10]]])
    box = found(1, [[0, 0, 9, 9]], [1.0])
    with pytest.raises(ValueError, match="has no annotations"):
        proposal_metrics(make_dataset([[]]), [box])
    with pytest.raises(ValueError, match="no image of id 5"):
        proposal_metrics(dataset, [box._replace(image_id=5)])
    with pytest.raises(ValueError, match="twice"):
        proposal_metrics(dataset, [box, box])
    with pytest.raises(ValueError, match="not finite"):
        proposal_metrics(dataset, [box._replace(scores=np.float32([math.nan]))])


def some_regions() -> Regions:
    boxes = np.float32([[i, 0, i + 5, 5] for i in range(20)])
    levels = np.arange(1, 21, dtype=np.int32)
    return Regions(boxes, levels, levels, np.arange(21))


def test_regions_score_one_less_their_rank() -> None:
    regions = some_regions()
    (whole,) = boxes_of_regions({4: regions}, top_k=None, seed=7)
    (first,) = boxes_of_regions({4: regions}, top_k=5, seed=7)
    order = rank(regions, (7, 4))
    np.testing.assert_array_equal(whole.boxes, regions.boxes[order])
    np.testing.assert_allclose(whole.scores, 1 - np.arange(20) / 20, atol=1e-7)
    np.testing.assert_array_equal(first.boxes, regions.boxes[order[:5]])
    np.testing.assert_allclose(first.scores, [1, 0.8, 0.6, 0.4, 0.2], atol=1e-7)
    assert whole.image_id == 4
    (other,) = boxes_of_regions({4: regions}, top_k=None, seed=8)
    assert not np.array_equal(other.boxes, whole.boxes)
    none = Regions(np.zeros((0, 4), np.float32), *[np.zeros(0, np.int32)] * 2, np.zeros(1, int))
    assert len(boxes_of_regions({1: none}, top_k=None, seed=0)[0].scores) == 0


def make_store(path: Path, keys: list[str], size: int = 100) -> Any:
    rows = [
        BoxRow(key, size, size, np.float32([[0, 0, 9, 9], [5, 5, 50, 50]]), [0.2, 0.9], [0, 0])
        for key in keys
    ]
    writer = BoxStoreWriter(path, info=StoreInfo(method="made"), keys=keys)
    writer.write_shard(0, rows)
    return writer.finish()


def test_boxes_of_a_store_are_its_best(tmp_path: Path) -> None:
    dataset = make_dataset([[[5, 5, 50, 50]], [[0, 0, 9, 9]]])
    store = make_store(tmp_path / "s", ["1.png", "0.png", "more.png"])
    both = boxes_of_store(dataset, store, top_k=None)
    assert [image.image_id for image in both] == [1, 2]
    assert both[0].boxes.tolist() == [[5, 5, 50, 50], [0, 0, 9, 9]]
    best = boxes_of_store(dataset, store, top_k=1)
    assert [image.boxes.tolist() for image in best] == [[[5, 5, 50, 50]]] * 2
    assert proposal_metrics(dataset, both)["AR10"] == 100
    assert proposal_metrics(dataset, best)["AR10"] == 50
    with pytest.raises(ValueError, match=r"lacks 1 of the 3 images of made.*'2\.png'"):
        boxes_of_store(make_dataset([[], [], []]), store, top_k=None)
    other = make_store(tmp_path / "other", ["1.png", "0.png"], size=50)
    with pytest.raises(ValueError, match="made from other images: 2 differ in size"):
        boxes_of_store(dataset, other, top_k=None)


def test_boxes_of_a_detector_are_one_a_query() -> None:
    class Standin(torch.nn.Module):
        """Labels an image with two boxes of two classes; refuses to be in training mode."""

        def label(self, batch: list[dict]) -> list[Instances]:
            assert not self.training
            boxes = torch.tensor([[0.0, 0, 5, 5], [1, 1, 9, 9]])
            made = Instances((100, 100), pred_boxes=Boxes(boxes))
            made.scores, made.pred_classes = torch.tensor([0.1, 0.7]), torch.tensor([2, 0])
            return [made for _ in batch]

    model = Standin().train()
    batches = [[{"image_id": 3}, {"image_id": 8}], [{"image_id": 1}]]
    got = boxes_of_detector(model, batches)
    assert model.training
    assert [image.image_id for image in got] == [3, 8, 1]
    assert got[0].boxes.tolist() == [[0, 0, 5, 5], [1, 1, 9, 9]]
    np.testing.assert_allclose(got[0].scores, [0.1, 0.7])
