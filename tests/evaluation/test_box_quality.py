"""Precision and recall of the best k boxes: by hand, and against plain loops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from predet.data.box_store import BoxRow
from predet.data.box_store_writer import BoxStoreWriter, StoreInfo
from predet.data.dataset import DetectionDataset
from predet.evaluation.box_quality import LabelledBoxes, box_quality, store_quality
from predet.evaluation.overlap import iou


def image(
    boxes: list, scores: list, classes: list, truth: list, true_classes: list, crowd: list
) -> LabelledBoxes:
    return LabelledBoxes(
        np.asarray(boxes, dtype=np.float32).reshape(-1, 4),
        np.asarray(scores, dtype=np.float32),
        np.asarray(classes, dtype=np.int64),
        np.asarray(truth, dtype=np.float32).reshape(-1, 4),
        np.asarray(true_classes, dtype=np.int64),
        np.asarray(crowd, dtype=bool),
    )


SQUARE = [0, 0, 10, 10]
FAR = [50, 50, 60, 60]


def test_by_hand() -> None:
    # Two objects. Best first: a hit, a duplicate of it, the other object as a wrong class, nothing.
    one = image(
        boxes=[[200, 200, 210, 210], SQUARE, [50, 50, 60, 59], [0, 0, 10, 9]],
        scores=[0.1, 0.9, 0.4, 0.8],
        classes=[0, 0, 0, 0],
        truth=[SQUARE, FAR],
        true_classes=[0, 1],
        crowd=[False, False],
    )
    at1, at3, at9 = box_quality([one], top_k=(1, 3, 9))
    assert (at1.precision, at1.recall) == (1.0, 0.5)
    assert (at3.precision, at3.recall) == (pytest.approx(1 / 3), 0.5)
    assert (at3.precision_any_class, at3.recall_any_class) == (pytest.approx(2 / 3), 1.0)
    assert (at9.precision, at9.recall) == (0.25, 0.5)
    assert at9.boxes_per_image == 4


def test_boxes_in_a_crowd_do_not_count_unless_they_match() -> None:
    one = image(
        boxes=[[1, 1, 5, 5], SQUARE, FAR, [98, 98, 130, 130]],
        scores=[0.9, 0.8, 0.7, 0.6],
        classes=[0, 0, 0, 0],
        truth=[[0, 0, 100, 100], SQUARE],
        true_classes=[0, 0],
        crowd=[True, False],
    )
    (result,) = box_quality([one], top_k=(10,))
    # SQUARE matches; two others lie in the crowd; the last one touches it only.
    assert (result.precision, result.recall) == (0.5, 1.0)
    assert result.boxes_per_image == 2


def test_an_overlap_or_a_score_at_the_threshold_counts(tmp_path: Path) -> None:
    half = [0, 0, 10, 5]  # of SQUARE: IoU 0.5
    (result,) = box_quality([image([half], [0.9], [0], [SQUARE], [0], [False])], top_k=(1,))
    assert result.recall == 1.0
    # The store knows "dog" and "cat", the data set "cat" and "cow": a cow is found as any class.
    rows = [BoxRow("a.png", 90, 90, np.float32([half, FAR]), [0.5, 0.25], [1, 0])]
    info = StoreInfo(method="made", class_names=("dog", "cat"))
    writer = BoxStoreWriter(tmp_path / "store", info=info, keys=["a.png"])
    writer.write_shard(0, rows)
    dataset = DetectionDataset(
        name="made",
        root="made",
        class_names=("cat", "cow"),
        category_ids=(1, 2),
        keys=["a.png", "b.png"],  # the store lacks the second
        image_ids=[1, 2],
        heights=[90, 90],
        widths=[90, 90],
        offsets=[0, 2, 3],
        boxes=np.float32([SQUARE, FAR, FAR]),
        classes=[0, 1, 1],
    )
    store = writer.finish()
    for threshold, count, any_class in ((0.25, 2, 1.0), (0.5, 1, 0.5), (0.6, 0, 0.0)):
        (result,) = store_quality(store, dataset, top_k=(9,), score_threshold=threshold)
        assert result.boxes_per_image == count
        assert (result.recall, result.recall_any_class) == (0.5 * (count > 0), any_class)


def test_nothing_predicted_and_nothing_to_find() -> None:
    nothing = image([], [], [], [SQUARE], [0], [False])
    (result,) = box_quality([nothing], top_k=(30,))
    assert math.isnan(result.precision)
    assert result.recall == 0.0
    nowhere = image([SQUARE], [0.5], [0], [], [], [])
    (result,) = box_quality([nowhere], top_k=(30,))
    assert result.precision == 0.0
    assert math.isnan(result.recall)


def loops(images: list[LabelledBoxes], k: int, class_aware: bool) -> tuple[float, float]:
    """The same, one comparison at a time (no crowds)."""
    hits = boxes = objects = 0
    for one in images:
        free = list(range(len(one.true_boxes)))
        objects += len(free)
        for index in sorted(range(len(one.scores)), key=lambda i: -one.scores[i])[:k]:
            boxes += 1
            fitting = []
            for other in free:
                a, b = one.boxes[index].astype(float), one.true_boxes[other].astype(float)
                w = min(a[2], b[2]) - max(a[0], b[0])
                h = min(a[3], b[3]) - max(a[1], b[1])
                common = max(w, 0) * max(h, 0)
                union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
                same = one.classes[index] == one.true_classes[other] or not class_aware
                if same and common / union >= 0.5:
                    fitting.append((common / union, -other))
            if fitting:
                free.remove(-max(fitting)[1])
                hits += 1
    return hits / boxes, hits / objects


def test_against_loops(rng: np.random.Generator) -> None:
    images = []
    for _ in range(20):
        count = int(rng.integers(1, 30))
        start = rng.uniform(0, 60, (count, 2))
        truth = np.concatenate([start, start + rng.uniform(5, 40, (count, 2))], axis=1)
        boxes = np.concatenate([truth, truth]) + rng.normal(0, 3, (2 * count, 4))
        images.append(
            image(
                np.sort(boxes.reshape(-1, 2, 2), axis=1).reshape(-1, 4),
                rng.random(2 * count),
                rng.integers(0, 3, 2 * count),
                truth,
                rng.integers(0, 3, count),
                [False] * count,
            )
        )
    for result in box_quality(images, top_k=(5, 10, 30)):
        expected = loops(images, result.top_k, True)
        assert (result.precision, result.recall) == pytest.approx(expected)
        expected = loops(images, result.top_k, False)
        assert (result.precision_any_class, result.recall_any_class) == pytest.approx(expected)
        assert 0.05 < result.recall < result.recall_any_class < 1


def test_overlap_of_boxes_without_area_is_zero() -> None:
    boxes = np.asarray([[0.0, 0, 10, 10], [5, 5, 5, 9], [0, 0, 10, 5]])
    np.testing.assert_allclose(iou(boxes, boxes[:2]), [[1, 0], [0, 0], [0.5, 0]])
