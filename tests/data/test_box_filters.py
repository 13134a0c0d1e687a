"""Filters of stored boxes, against the rules written as loops."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest

from predet.data.box_filters import (
    AspectRatio,
    Chain,
    FirstK,
    FirstThatLeaves,
    MinSize,
    NonMaximum,
    RelativeSize,
    filter_store,
    soco_filter,
)
from predet.data.box_store import BoxRow, BoxStore
from predet.data.box_store_writer import BoxStoreWriter, StoreInfo

SIZE = (200, 300)  # height, width


def row(boxes: list, key: str = "a.png", scores: list | None = None) -> BoxRow:
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    scores = np.linspace(1, 0.5, len(boxes)) if scores is None else np.asarray(scores)
    return BoxRow(
        key, *SIZE, boxes, scores.astype(np.float32), np.arange(len(boxes), dtype=np.int64) % 2
    )


def drawn(count: int, seed: int) -> BoxRow:
    rng = np.random.default_rng(seed)
    first = rng.uniform(0, 150, (count, 2))
    return row(np.concatenate([first, first + rng.uniform(0, 150, (count, 2))], axis=1))


def test_each_filter_is_its_rule_box_by_box() -> None:
    boxes = drawn(500, seed=0)
    wanted: dict[str, list[int]] = {"size": [], "aspect": [], "relative": []}
    for index, (x0, y0, x1, y1) in enumerate(boxes.boxes.astype(float)):
        width, height = x1 - x0, y1 - y0
        if width >= 32 and height >= 32:
            wanted["size"].append(index)
        if 1 / 3 <= width / height <= 3:
            wanted["aspect"].append(index)
        if 0.1 <= math.sqrt(width * height) / math.sqrt(200 * 300) <= 0.4:
            wanted["relative"].append(index)
    assert MinSize(pixels=32)(boxes).tolist() == wanted["size"]
    assert AspectRatio(limit=3)(boxes).tolist() == wanted["aspect"]
    assert RelativeSize(low=0.1, high=0.4)(boxes).tolist() == wanted["relative"]
    assert all(50 < len(kept) < 450 for kept in wanted.values())


def test_limits_belong_to_what_stays() -> None:
    exact = row([[0, 0, 32, 32], [0, 0, 31.99, 40], [0, 0, 90, 30], [0, 0, 30, 91], [0, 0, 0, 9]])
    assert MinSize(pixels=32)(exact).tolist() == [0]
    assert AspectRatio(limit=3)(exact).tolist() == [0, 1, 2]
    assert RelativeSize(low=0, high=1)(row([[0, 0, 300, 200]])).tolist() == [0]


def test_suppression_is_greedy_in_stored_order() -> None:
    boxes = drawn(80, seed=1)
    kept: list[int] = []
    for index, box in enumerate(boxes.boxes.astype(float)):
        for other in boxes.boxes[kept].astype(float):
            sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
            shared = np.prod(np.clip(sides, 0, None))
            areas = np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2])
            if shared / (areas - shared) > 0.3:
                break
        else:
            kept.append(index)
    assert 10 < len(kept) < 70
    assert NonMaximum(iou=0.3)(boxes).tolist() == kept
    # Scores do not count, they may all be equal.
    assert NonMaximum(iou=0.3)(boxes._replace(scores=boxes.scores[::-1])).tolist() == kept


def test_a_chain_counts_what_is_left() -> None:
    boxes = row([[0, 0, 10, 10], [0, 0, 40, 40], [1, 1, 41, 41], [100, 0, 160, 60]])
    chain = Chain((MinSize(pixels=20), NonMaximum(iou=0.5), FirstK(k=1)))
    assert chain(boxes).tolist() == [1]
    assert Chain((FirstK(k=1), MinSize(pixels=20)))(boxes).tolist() == []
    assert Chain(())(boxes).tolist() == [0, 1, 2, 3]
    assert FirstThatLeaves((chain, MinSize(pixels=0)))(boxes).tolist() == [1]
    assert FirstThatLeaves((MinSize(pixels=900), FirstK(k=2)))(boxes).tolist() == [0, 1]


def test_soco_gives_up_the_relative_size_and_then_the_shape() -> None:
    rule = soco_filter()
    good, whole, long, tiny = [0, 0, 60, 60], [0, 0, 300, 190], [0, 0, 200, 40], [0, 0, 20, 20]
    assert rule(row([tiny, long, whole, good])).tolist() == [3]
    assert rule(row([tiny, long, whole])).tolist() == [2]
    assert rule(row([tiny, long])).tolist() == [1]
    assert rule(row([tiny])).tolist() == []
    assert rule(row([])).tolist() == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MinSize(pixels=-1), "0 or more pixels, got -1"),
        (lambda: AspectRatio(limit=0.5), "at least 1, got 0.5"),
        (lambda: RelativeSize(low=0.5, high=0.5), r"must rise from 0 on, got \[0.5, 0.5\]"),
        (lambda: NonMaximum(iou=1.5), r"lie in \[0, 1\], got 1.5"),
        (lambda: FirstK(k=0), "at least 1, got 0"),
    ],
)
def test_impossible_settings_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.fixture
def store(tmp_path: Path) -> BoxStore:
    """Three images, one of which could not be read; the first has a level row behind its boxes."""
    info = StoreInfo(
        method="selective_search-fast",
        parameters={"resize": "500"},
        class_names=("cat", "dog"),
        category_ids=(3, 7),
        image_root="/images",
        dataset="mine",
        seed=5,
        selection={"top_k": 30, "score_threshold": 0.0},
    )
    writer = BoxStoreWriter(
        tmp_path / "store", info=info, keys=["a.png", "broken.png", "b.png"], shard_size=2
    )
    first = row(
        [[0, 0, 60, 60], [0, 0, 8, 8], [1, 0, 61, 60], [0, 0, 60, 60]],
        "a.png",
        scores=[1, 0.8, 0.6, -2],
    )
    writer.write_shard(0, [first], skipped={"broken.png": "no image"})
    writer.write_shard(1, [row([[0, 0, 5, 5]], "b.png")])
    return writer.finish()


def test_a_filtered_store_has_all_images_and_says_what_was_done(
    store: BoxStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        result = filter_store(
            store, tmp_path / "new", filters=[MinSize(pixels=10), NonMaximum(iou=0.5)]
        )
    assert result.keys == ["a.png", "b.png"]
    assert result.skipped == {"broken.png": "no image"}
    assert result["a.png"].boxes.tolist() == [[0, 0, 60, 60]]
    assert result["a.png"].scores.tolist() == [1]
    assert result["b.png"].boxes.shape == (0, 4)
    assert (result["a.png"].height, result["a.png"].width) == SIZE
    assert "1 of 4 boxes stay; 1 of 2 images have none" in caplog.text
    kept = ("method", "class_names", "category_ids", "image_root", "dataset", "seed")
    assert {name: result.meta[name] for name in kept} == {name: store.meta[name] for name in kept}
    assert result.meta["selection"] == {"top_k": None, "score_threshold": 0.0}
    assert result.meta["parameters"] == {
        "resize": "500",
        "filters": [{"MinSize": {"pixels": 10}}, {"NonMaximum": {"iou": 0.5}}],
    }
    again = filter_store(result, tmp_path / "third", filters=[soco_filter()])
    done = again.meta["parameters"]["filters"]
    assert [next(iter(one)) for one in done] == ["MinSize", "NonMaximum", "FirstThatLeaves"]


def test_scores_below_zero_are_boxes_of_a_detector(tmp_path: Path) -> None:
    info = StoreInfo(method="detector", class_names=("cat", "dog"))
    writer = BoxStoreWriter(tmp_path / "store", info=info, keys=["a.png"])
    logits = row([[0, 0, 60, 60], [0, 0, 90, 60], [0, 0, 5, 5]], scores=[2.0, -1.5, -2.0])
    writer.write_shard(0, [logits])
    result = filter_store(writer.finish(), tmp_path / "new", filters=[MinSize(pixels=10)])
    assert result["a.png"].scores.tolist() == [2.0, -1.5]
    assert result.meta["counts"]["boxes"] == 2


def test_a_killed_filter_goes_on(store: BoxStore, tmp_path: Path) -> None:
    first = filter_store(store, tmp_path / "new", filters=[FirstK(k=1)])
    (tmp_path / "new" / "boxes-00000-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match="are gone"):
        BoxStore(tmp_path / "new")
    second = filter_store(store, tmp_path / "new", filters=[FirstK(k=1)])
    for one, other in zip(first, second, strict=True):
        assert one.key == other.key
        assert one.boxes.tolist() == other.boxes.tolist()
    with pytest.raises(ValueError, match="other settings or images"):
        filter_store(store, tmp_path / "new", filters=[FirstK(k=2)])
    with pytest.raises(ValueError, match="nothing to filter by"):
        filter_store(store, tmp_path / "other", filters=[])
