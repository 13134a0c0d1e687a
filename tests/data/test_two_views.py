"""Two views of an image: the same boxes in both, on the same pixels; changes against Pillow."""

from __future__ import annotations

import itertools
import pickle

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from predet.data.augmentation import (
    ChooseOne,
    Compose,
    DETRAugmentation,
    HorizontalFlip,
    RandomCrop,
    ResizeShortSide,
)
from predet.data.box_sources import AnnotatedBoxes, RandomPatches
from predet.data.dataset import Record
from predet.data.formats import load_dataset
from predet.data.loader import build_train_loader
from predet.data.photometric import CHANGES, OneChange
from predet.data.two_views import TwoViewMapper

RESIZE = ResizeShortSide(short_sides=[90, 110, 130, 150], max_size=260)
PAPER = Compose(steps=[RESIZE, HorizontalFlip()])
CROPS = Compose(steps=[HorizontalFlip(), RandomCrop(min_size=84, max_size=112), RESIZE])


@pytest.fixture
def record(tmp_path) -> Record:
    """120 x 180 pixels of smooth colours, 9 boxes, one of them a crowd."""
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 256, (9, 13, 3), np.uint8)
    image = cv2.resize(coarse, (180, 120), interpolation=cv2.INTER_CUBIC)
    path = tmp_path / "image.png"
    assert cv2.imwrite(str(path), image[..., ::-1])
    low = rng.uniform((0, 0), (130, 80), (9, 2))
    boxes = np.concatenate([low, low + rng.uniform(14, 40, (9, 2))], axis=1).astype(np.float32)
    return Record(
        key="image.png",
        path=str(path),
        image_id=3,
        height=120,
        width=180,
        boxes=boxes,
        classes=np.arange(9),
        iscrowd=np.arange(9) == 4,
    )


def mapper(augmentation=PAPER, photometric=()) -> TwoViewMapper:
    return TwoViewMapper(augmentation=augmentation, boxes=AnnotatedBoxes(), photometric=photometric)


def content(view: dict, box: np.ndarray, mirrored: bool) -> np.ndarray:
    """(8, 8, 3) colours on a grid inside of a box, bilinear."""
    x1, y1, x2, y2 = box
    steps = (np.arange(8) + 0.5) / 8
    x = x1 + (steps[::-1] if mirrored else steps) * (x2 - x1)
    grid = np.meshgrid(x, y1 + steps * (y2 - y1))
    image = view["image"].numpy().transpose(1, 2, 0).astype(np.float32)
    x, y = (axis.astype(np.float32) - 0.5 for axis in grid)
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def mismatch(view: dict, other: dict, row: int, other_row: int) -> float:
    """Mean difference of what two boxes show, for the better of both ways of mirroring."""
    boxes = [v["instances"].gt_boxes.tensor.numpy() for v in (view, other)]
    straight = content(view, boxes[0][row], mirrored=False)
    return min(
        float(np.abs(straight - content(other, boxes[1][other_row], mirrored)).mean())
        for mirrored in (False, True)
    )


def is_whole(view: dict) -> np.ndarray:
    """(N,) whether the boxes end inside of the image, so that no border has cut them."""
    boxes = view["instances"].gt_boxes.tensor.numpy()
    height, width = view["image"].shape[1:]
    return ((boxes > 0) & (boxes < np.float32([width, height] * 2) - 0.01)).all(axis=1)


@pytest.mark.parametrize("augmentation", [PAPER, CROPS], ids=["paper", "crops"])
def test_a_box_shows_the_same_pixels_in_both_views(record, augmentation):
    make, rng = mapper(augmentation), np.random.default_rng(0)
    same, other, sizes = [], [], set()
    for _ in range(30):
        first, second = make(record, rng)["views"]
        sizes.add(first["image"].shape != second["image"].shape)
        # A crop cuts boxes, not the same part in both views; whole ones show the same.
        rows = np.flatnonzero(is_whole(first) & is_whole(second))
        same += [mismatch(first, second, row, row) for row in rows]
        pairs = itertools.pairwise(rows)
        other += [mismatch(first, second, *pair) for pair in pairs]
    assert True in sizes
    assert len(same) > 20
    assert np.mean(same) < 2.0  # of 255: resampling
    assert np.median(other) > 15  # a wrong pairing would be seen


def test_every_box_is_in_both_views_without_crops(record):
    item = mapper()(record, np.random.default_rng(1))
    kept = [0, 1, 2, 3, 5, 6, 7, 8]
    for view in item["views"]:
        assert view["instances"].gt_classes.tolist() == kept
        assert view["instances"].image_size == tuple(view["image"].shape[1:])
    assert item["image"] is item["views"][0]["image"]
    assert item["instances"] is item["views"][0]["instances"]
    assert (item["height"], item["width"], item["key"]) == (120, 180, "image.png")


def test_a_box_that_is_cut_off_in_one_view_is_in_neither(record):
    make, rng = mapper(CROPS), np.random.default_rng(2)
    counts = set()
    for _ in range(20):
        views = make(record, rng)["views"]
        classes = [view["instances"].gt_classes.tolist() for view in views]
        assert classes[0] == classes[1] == sorted(classes[0])
        counts.add(len(classes[0]))
    assert min(counts) < 8


def test_order_survives_an_augmentation_that_changes_it(record):
    def reverse(sample, rng):
        back = slice(None, None, -1)
        return sample._replace(
            boxes=sample.boxes[back],
            classes=sample.classes[back],
            source_rows=sample.source_rows[back],
        )

    views = mapper(ChooseOne(options=[reverse, Compose(steps=[])]))
    for seed in range(4):
        first, second = views(record, np.random.default_rng(seed))["views"]
        assert first["instances"].gt_classes.equal(second["instances"].gt_classes)
        assert first["instances"].gt_boxes.tensor.equal(second["instances"].gt_boxes.tensor)


def test_an_image_without_boxes_has_views_without_any(record):
    bare = record._replace(
        boxes=np.zeros((0, 4), np.float32), classes=np.zeros(0, int), iscrowd=np.zeros(0, bool)
    )
    views = mapper(CROPS)(bare, np.random.default_rng(0))["views"]
    assert [len(view["instances"]) for view in views] == [0, 0]


def test_a_data_set_without_boxes_is_refused(record, tmp_path):
    with pytest.raises(ValueError, match="has no annotations, but its own boxes are asked for"):
        build_train_loader(
            dataset=load_dataset(tmp_path),
            mapper=mapper(),
            total_batch_size=1,
            num_workers=0,
            seed=0,
        )


def test_boxes_can_come_from_any_source(record):
    make = TwoViewMapper(augmentation=PAPER, boxes=RandomPatches(num_patches=6))
    views = make(record, np.random.default_rng(3))["views"]
    assert [len(view["instances"]) for view in views] == [6, 6]
    assert max(mismatch(*views, row, row) for row in range(6)) < 3


def test_views_are_a_function_of_the_generator(record):
    make = pickle.loads(pickle.dumps(mapper(DETRAugmentation(), [OneChange()])))
    draws = [make(record, np.random.default_rng(seed))["views"] for seed in (7, 7, 8)]
    for first, again in zip(draws[0], draws[1], strict=True):
        assert first["image"].equal(again["image"])
        assert first["instances"].gt_boxes.tensor.equal(again["instances"].gt_boxes.tensor)
    assert not draws[0][0]["image"].equal(draws[2][0]["image"])
    assert not draws[0][0]["image"].equal(draws[0][1]["image"])


def test_changes_of_pixels_come_after_the_geometry_of_each_view(record):
    def inverted(image, rng):
        return 255 - image

    plain, changed = (
        mapper(CROPS, photometric)(record, np.random.default_rng(4))["views"]
        for photometric in ((), (inverted, inverted, inverted))
    )
    for view, other in zip(plain, changed, strict=True):
        assert other["image"].equal(255 - view["image"])
        assert other["instances"].image_size == tuple(other["image"].shape[1:])


def test_changes_are_those_of_pillow_at_the_papers_strengths():
    image = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    pillow = Image.fromarray(image)
    wanted = {
        ("identity", 3): pillow,
        ("autocontrast", 3): ImageOps.autocontrast(pillow),
        ("equalize", 3): ImageOps.equalize(pillow),
        ("solarize", 1): ImageOps.solarize(pillow, 25),
        ("solarize", 9): ImageOps.solarize(pillow, 230),
        ("color", 1): ImageEnhance.Color(pillow).enhance(0.28),
        ("contrast", 9): ImageEnhance.Contrast(pillow).enhance(1.72),
        ("brightness", 5): ImageEnhance.Brightness(pillow).enhance(1.0),
        ("sharpness", 2): ImageEnhance.Sharpness(pillow).enhance(0.46),
        ("posterize", 1): ImageOps.posterize(pillow, 4),
        ("posterize", 4): ImageOps.posterize(pillow, 3),
        ("posterize", 9): ImageOps.posterize(pillow, 1),
    }
    assert {name for name, _ in wanted} == set(CHANGES)
    for (name, strength), expected in wanted.items():
        found = np.asarray(CHANGES[name](pillow, strength))
        np.testing.assert_array_equal(found, np.asarray(expected), err_msg=name)


def test_one_change_is_drawn_of_all():
    image = np.random.default_rng(0).integers(40, 200, (16, 16, 3), np.uint8)
    rng = np.random.default_rng(0)
    made = [OneChange()(image, rng).tobytes() for _ in range(400)]
    # 41 outcomes: 1 + 1 + 1 of no strength, 9 of each of solarize and the enhancements (one of
    # which changes nothing), 4 of posterize, some of which may be alike.
    assert 30 <= len(set(made)) <= 3 + 5 * 9 + 4
    assert 0.07 < made.count(image.tobytes()) / 400 < 0.25
    with pytest.raises(ValueError, match=r"changes must be one or more of identity, .* got"):
        OneChange(changes=["blur"])
