"""Box sources: what they give, and that it depends on the generator alone."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from predet.data.box_sources import AnnotatedBoxes, RandomPatches
from predet.data.dataset import Record
from predet.data.images import BadSampleError


def make_record(boxes: list[list[float]] | None = None, crowd: list[bool] | None = None) -> Record:
    found = np.array(boxes or [], np.float32).reshape(-1, 4)
    return Record(
        key="some/image.png",
        path="folder/some/image.png",
        image_id=7,
        height=0,
        width=0,
        boxes=found,
        classes=np.arange(len(found)) + 3,
        iscrowd=np.array(crowd if crowd is not None else [False] * len(found), bool),
    )


def blank(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


def test_annotated_boxes_are_those_of_the_record_but_crowds():
    record = make_record([[1, 2, 3, 4], [5, 6, 7, 8], [0, 0, 9, 9]], [False, True, False])
    boxes, classes = AnnotatedBoxes()(blank(20, 20), record, None)
    assert boxes.tolist() == [[1, 2, 3, 4], [0, 0, 9, 9]]
    assert classes.tolist() == [3, 5]


def test_random_patches_have_the_published_sizes_and_places():
    """All whole numbers of the ranges occur, each as often as the others, and no other number."""
    height, width = 24, 30
    boxes, classes = RandomPatches(num_patches=40_000)(
        blank(height, width), make_record(), np.random.default_rng(0)
    )
    assert (boxes.dtype, classes.dtype) == (np.float32, np.int64)
    assert boxes.shape == (40_000, 4)
    assert not classes.any()
    sizes = (boxes[:, 2:] - boxes[:, :2]).astype(int)
    for axis, side in enumerate((width, height)):
        values, counts = np.unique(sizes[:, axis], return_counts=True)
        assert values.tolist() == list(range(8, side - 8 + 1))
        expected = 40_000 / len(values)
        assert abs(counts - expected).max() < 6 * expected**0.5
        for length in (8, side - 8):  # the corners of the smallest and of the largest
            starts = boxes[sizes[:, axis] == length, axis].astype(int)
            assert set(starts) == set(range(side - length))
    assert abs(np.corrcoef(sizes.T)[0, 1]) < 0.02  # width and height are drawn on their own


def test_random_patches_are_a_function_of_the_generator():
    source = pickle.loads(pickle.dumps(RandomPatches(num_patches=5)))
    first, second, other = (
        source(blank(50, 60), make_record(), np.random.default_rng(seed))[0] for seed in (1, 1, 2)
    )
    assert source.num_boxes == 5
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(("height", "width"), [(16, 100), (100, 16), (1, 1)])
def test_image_too_small_for_patches_is_a_bad_sample(height, width):
    with pytest.raises(BadSampleError, match=rf"some/image\.png: too small .*{width}x{height}"):
        RandomPatches()(blank(height, width), make_record(), np.random.default_rng(0))
    RandomPatches()(blank(17, 17), make_record(), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomPatches(num_patches=0), "num_patches must be at least 1, got 0"),
        (lambda: RandomPatches(min_side=0), "min_side must be at least one pixel, got 0"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
