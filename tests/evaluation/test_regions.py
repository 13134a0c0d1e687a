"""Region crops and nearest neighbours, against scikit-like plain loops and planted cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from predet.data.dataset import DetectionDataset
from predet.data.formats import load_dataset
from predet.data.images import read_image
from predet.data.scenes import make_scenes
from predet.evaluation.regions import (
    balanced_accuracy,
    color_histograms,
    encoded,
    knn_classes,
    raw_pixels,
    region_crops,
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    folder = tmp_path_factory.mktemp("scenes")
    make_scenes(folder, num_images=12, image_size=64, num_classes=3, seed=0)
    return load_dataset(folder)


def plain_knn(memory, classes, queries, k):
    """By loops, without the rule for ties."""
    mean = memory.mean(axis=0)
    found = []
    for query in queries - mean:
        cosines = [
            float(query @ row / (np.linalg.norm(query) * np.linalg.norm(row)))
            for row in memory - mean
        ]
        best = np.argsort(cosines)[::-1][:k]
        found.append(np.bincount(classes[best], minlength=9))
    return np.array(found)


def test_neighbours_vote_as_in_plain_loops():
    rng = np.random.default_rng(0)
    memory, queries = rng.normal(size=(60, 7)) + 3, rng.normal(size=(80, 7)) + 3
    classes = rng.integers(0, 4, 60) * 2  # with gaps
    votes = plain_knn(memory, classes, queries, 5)
    found = knn_classes(memory, classes, queries, k=5)
    assert (votes[np.arange(80), found] == votes.max(axis=1)).all()
    assert (found == votes.argmax(axis=1)).mean() < 1  # ties exist, and not the first class wins


def test_a_tie_goes_to_the_class_that_is_nearer():
    memory = np.array([[1.0, 0.1], [1.0, -0.9], [-1.0, 0.2], [-1.0, 0.6]])
    found = knn_classes(memory, np.array([4, 2, 7, 7]), np.array([[1.0, 0.0]]), k=2)
    assert found.tolist() == [4]


def test_balanced_accuracy_counts_every_class_once():
    true = np.array([0] * 98 + [5] * 2)
    assert balanced_accuracy(np.zeros(100, int), true) == 0.5
    assert balanced_accuracy(true, true) == 1.0


def test_memory_must_be_as_large_as_k():
    with pytest.raises(ValueError, match=r"k must lie in \[1, 3\], .* got 4"):
        knn_classes(np.eye(3), np.arange(3), np.eye(3), k=4)


def test_crops_are_the_pixels_of_the_boxes(scenes):
    regions = region_crops(scenes, size=32, max_per_class=None, seed=0)
    sides = scenes.boxes[:, 2:] - scenes.boxes[:, :2]
    kept = np.flatnonzero((sides >= 4).all(axis=1))
    assert regions.crops.shape == (len(kept), 32, 32, 3)
    np.testing.assert_array_equal(regions.classes, scenes.classes[kept])
    row = int(kept[-1])
    x1, y1, x2, y2 = scenes.boxes[row].astype(int)  # of scenes they are whole numbers
    window = read_image(scenes[len(scenes) - 1].path)[y1:y2, x1:x2]
    assert abs(window.mean() - regions.crops[-1].mean()) < 3
    assert np.abs(window[0, 0].astype(int) - regions.crops[-1][0, 0]).max() <= 25


def test_crops_are_drawn_class_by_class(scenes):
    few = region_crops(scenes, size=8, max_per_class=3, seed=0)
    assert np.bincount(few.classes).tolist() == [3, 3, 3]
    again = region_crops(scenes, size=8, max_per_class=3, seed=0)
    other = region_crops(scenes, size=8, max_per_class=3, seed=1)
    assert np.array_equal(few.crops, again.crops)
    assert not np.array_equal(few.crops, other.crops)


def test_boxes_beyond_the_image_crowds_and_specks(scenes):
    boxes = [[-9, -9, 20, 20], [0, 0, 64, 64], [5, 5, 8, 40], [60, 60, 99, 99], [50, 9, 54.5, 14]]
    dataset = scenes.select([0]).with_annotations(
        name="odd",
        class_names=["a", "b"],
        category_ids=[1, 2],
        offsets=[0, 5],
        boxes=boxes,
        classes=[0, 0, 1, 1, 1],
        iscrowd=[False, True, False, False, False],
    )
    regions = region_crops(dataset, size=8, max_per_class=None, seed=0)
    assert regions.classes.tolist() == [0, 1, 1]
    image = read_image(dataset[0].path)
    assert abs(regions.crops[0].mean() - image[:20, :20].mean()) < 6
    assert abs(regions.crops[1].mean() - image[60:, 60:].mean()) < 6


def test_a_set_without_boxes_is_refused(scenes):
    empty = scenes.with_annotations(
        name="bare",
        class_names=["a"],
        category_ids=[1],
        offsets=[0] * (len(scenes) + 1),
        boxes=[],
        classes=[],
    )
    with pytest.raises(ValueError, match=r"'bare'.*no annotated box of at least 4 pixels"):
        region_crops(empty, size=8, max_per_class=None, seed=0)


def test_histograms_are_those_of_loops():
    crops = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3)).astype(np.uint8)
    expected = np.zeros((2, 4, 4, 4))
    for index in range(2):
        for pixel in crops[index].reshape(-1, 3):
            expected[(index, *(pixel // 64))] += 1 / 25
    found = color_histograms(crops, bins=4) ** 2
    np.testing.assert_allclose(found, expected.reshape(2, -1), atol=1e-6)


def test_raw_pixels_are_the_crop_made_small():
    crops = np.repeat(np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1) * 50, 3, axis=3)
    large = crops.repeat(8, axis=1).repeat(8, axis=2)
    np.testing.assert_array_equal(raw_pixels(large, side=2), crops.reshape(1, -1))


def test_encoder_sees_rgb_planes_in_batches():
    crops = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)
    sizes = []

    def encode(batch: torch.Tensor) -> torch.Tensor:
        assert batch.dtype == torch.uint8
        sizes.append(len(batch))
        return batch.double().mean(dim=(2, 3))

    features = encoded(crops, encode, batch_size=2)
    assert sizes == [2, 2, 1]
    np.testing.assert_allclose(features, crops.mean(axis=(1, 2)), rtol=1e-5)


def test_features_that_are_not_finite_are_refused():
    crops = np.zeros((3, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="features of 3 of 3 regions are not finite"):
        encoded(crops, lambda batch: batch.float().mean(dim=(2, 3)) * float("nan"))
