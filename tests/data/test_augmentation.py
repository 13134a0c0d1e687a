import cv2
import numpy as np
import pytest
from PIL import Image

from predet.data.augmentation import (
    ChooseOne,
    Compose,
    DETRAugmentation,
    HorizontalFlip,
    RandomCrop,
    ResizeShortSide,
    make_sample,
    resize,
    resized_size,
)


def smooth_image(height, width, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def sample_of(image, boxes=()):
    boxes = np.float32(boxes).reshape(-1, 4)
    return make_sample(image, boxes, np.arange(len(boxes)))


@pytest.mark.parametrize(
    ("height", "width", "short_side", "max_size", "expected"),
    [
        (480, 640, 800, 1333, (800, 1066)),  # 1066.67 is cut, not rounded
        (640, 480, 800, 1333, (1066, 800)),
        (427, 640, 800, 1333, (800, 1199)),
        (500, 500, 608, 1333, (608, 608)),
        (800, 1000, 800, 1333, (800, 1000)),
        (375, 1242, 800, 1333, (402, 1331)),  # limited by the long side
        (240, 800, 800, 1333, (400, 1333)),
        (200, 1000, 800, 1333, (267, 1335)),  # the rule can exceed max_size
        (1000, 3000, 600, None, (600, 1800)),
        (10, 4000, 96, 128, (1, 400)),  # never 0 pixels
    ],
)
def test_size_rule_of_detr(height, width, short_side, max_size, expected):
    assert resized_size(height, width, short_side=short_side, max_size=max_size) == expected


def test_enlarging_has_the_geometry_of_pillow():
    image = smooth_image(40, 50)
    ours = resize(sample_of(image), 90, 120).image.astype(int)
    pillow = Image.fromarray(image)
    expected = np.asarray(pillow.resize((120, 90), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(ours - expected).max() <= 2
    moved = np.roll(expected, 1, axis=1)
    assert np.abs(ours - moved).mean() > 2  # a pixel's shift would be seen


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_shrinking_by_whole_numbers_averages_areas(factor):
    image = np.random.default_rng(0).integers(0, 256, (30, 60, 3), np.uint8)
    ours = resize(sample_of(image), 30 // factor, 60 // factor).image
    blocks = image.reshape(30 // factor, factor, 60 // factor, factor, 3).mean(axis=(1, 3))
    assert np.abs(ours - blocks).max() <= 0.51
    assert np.abs(ours - image[::factor, ::factor]).max() > 50  # picking pixels would alias


def test_resize_scales_boxes_by_the_true_ratio_of_each_axis():
    sample = resize(sample_of(smooth_image(480, 640), [[10, 20, 110, 220]]), 800, 1066)
    expected = [[10 * 1066 / 640, 20 * 800 / 480, 110 * 1066 / 640, 220 * 800 / 480]]
    np.testing.assert_allclose(sample.boxes, expected, rtol=1e-6)
    assert sample.image.shape == (800, 1066, 3)


def test_flip_mirrors_pixels_and_boxes():
    image = smooth_image(20, 30)
    sample = sample_of(image, [[2, 3, 10, 12], [0, 0, 30, 20]])
    flipped = HorizontalFlip(probability=1.0)(sample, np.random.default_rng(0))
    np.testing.assert_array_equal(flipped.image, image[:, ::-1])
    np.testing.assert_array_equal(flipped.boxes, [[20, 3, 28, 12], [0, 0, 30, 20]])
    kept = HorizontalFlip(probability=0.0)(sample, np.random.default_rng(0))
    np.testing.assert_array_equal(kept.image, image)


def test_flip_is_as_likely_as_asked_for():
    sample, flip = sample_of(smooth_image(4, 6), [[0, 0, 2, 2]]), HorizontalFlip(probability=0.3)
    rng = np.random.default_rng(0)
    share = np.mean([flip(sample, rng).boxes[0, 0] == 4 for _ in range(4000)])
    assert abs(share - 0.3) < 0.03  # standard deviation 0.007


def test_crop_cuts_boxes_and_drops_those_outside():
    image = smooth_image(40, 50)
    boxes = [[0, 0, 50, 40], [0, 0, 1, 1], [20, 15, 22, 16]]
    crop, rng = RandomCrop(min_size=10, max_size=20), np.random.default_rng(0)
    for _ in range(200):
        sample = crop(sample_of(image, boxes), rng)
        height, width = sample.image.shape[:2]
        np.testing.assert_array_equal(sample.boxes[0], [0, 0, width, height])
        (tops, lefts) = np.nonzero((image == sample.image[0, 0]).all(axis=2))
        assert any(
            np.array_equal(image[top : top + height, left : left + width], sample.image)
            and sample.source_rows.tolist() == rows_inside(boxes, top, left, height, width)
            for top, left in zip(tops, lefts, strict=True)
        )


def rows_inside(boxes, top, left, height, width):
    return [
        row
        for row, (x1, y1, x2, y2) in enumerate(boxes)
        if x1 < left + width and x2 > left and y1 < top + height and y2 > top
    ]


def test_crop_draws_both_sides_on_their_own_over_the_whole_range():
    image = np.zeros((40, 15, 3), np.uint8)
    crop, rng = RandomCrop(min_size=12, max_size=20), np.random.default_rng(0)
    sizes = [crop(sample_of(image), rng).image.shape[:2] for _ in range(3000)]
    heights, widths = np.array(sizes).T
    counts = np.bincount(heights, minlength=21)[12:]
    assert len(counts) == 9  # 12 to 20, both included
    assert (abs(counts - 3000 / 9) < 85).all()  # five standard deviations
    assert set(widths) == {12, 13, 14, 15}  # the image's own side is the limit
    assert abs(np.corrcoef(heights, widths)[0, 1]) < 0.08


def test_crop_places_the_window_everywhere():
    column = np.arange(30, dtype=np.uint8)
    image = np.broadcast_to(column[:, None, None], (30, 30, 3))
    crop, rng = RandomCrop(min_size=10, max_size=10), np.random.default_rng(0)
    tops = [crop(sample_of(image), rng).image[0, 0, 0] for _ in range(3000)]
    counts = np.bincount(tops, minlength=21)
    assert len(counts) == 21
    assert counts.min() > 80  # 143 expected


def test_small_images_are_kept_whole_by_the_crop():
    sample = sample_of(smooth_image(8, 9), [[1, 1, 5, 5]])
    cropped = RandomCrop(min_size=384, max_size=600)(sample, np.random.default_rng(0))
    assert cropped.image.shape == (8, 9, 3)


def test_clamping_drops_boxes_left_without_area_and_remembers_rows():
    boxes = np.float32([[-5, -5, 3, 3], [9, 9, 12, 12], [4, 4, 4, 8], [2, 2, 50, 50]])
    sample = make_sample(smooth_image(10, 9), boxes, np.array([7, 8, 9, 6]))
    np.testing.assert_array_equal(sample.boxes, [[0, 0, 3, 3], [2, 2, 9, 10]])
    assert sample.classes.tolist() == [7, 6]
    assert sample.source_rows.tolist() == [0, 3]


SMALL_DETR = {
    "short_sides": (64, 80, 96),
    "max_size": 150,
    "crop_short_sides": (70, 100),
    "crop_size": (50, 90),
}


def test_boxes_follow_the_pixels_through_the_whole_recipe():
    image = np.zeros((90, 120, 3), np.uint8)
    image[20:50, 30:80] = 255
    augmentation = DETRAugmentation(**SMALL_DETR)
    cropped = 0
    for seed in range(300):
        sample = augmentation(sample_of(image, [[30, 20, 80, 50]]), np.random.default_rng(seed))
        height, width = sample.image.shape[:2]
        assert min(height, width) in (64, 80, 96) or max(height, width) >= 148
        mask = sample.image[..., 0] > 127
        cropped += mask.any() and (mask[0].any() or mask[:, 0].any())
        if not mask.any():
            continue
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(sample.boxes[0], found, atol=1.6)
    assert cropped > 10


def test_recipe_draws_each_branch_half_of_the_time():
    """Without a limit the aspect ratio stays exact unless the image was cropped."""
    augmentation = DETRAugmentation(**{**SMALL_DETR, "max_size": None, "crop_size": (40, 60)})
    sample = sample_of(smooth_image(64, 128))
    ratios = []
    for seed in range(1000):
        height, width = augmentation(sample, np.random.default_rng(seed)).image.shape[:2]
        ratios.append(abs(width / height - 2) < 0.01)
    assert abs(np.mean(ratios) - 0.5) < 0.06


def test_defaults_are_those_of_detr():
    flip, choice = DETRAugmentation().steps
    plain, crop = choice.options
    assert flip.probability == 0.5
    assert plain.short_sides == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert plain.max_size == crop.steps[2].max_size == 1333
    assert (crop.steps[0].short_sides, crop.steps[0].max_size) == ((400, 500, 600), None)
    assert (crop.steps[1].min_size, crop.steps[1].max_size) == (384, 600)
    assert crop.steps[2].short_sides == plain.short_sides


def test_same_generator_same_sample_and_the_input_is_left_alone():
    image, boxes = smooth_image(90, 120), np.float32([[3, 4, 50, 60]])
    before = image.copy(), boxes.copy()
    augmentation = DETRAugmentation(**SMALL_DETR)
    samples = [
        augmentation(make_sample(image, boxes, np.array([0])), np.random.default_rng(seed))
        for seed in (5, 5, 6, 7, 8)
    ]
    np.testing.assert_array_equal(samples[0].image, samples[1].image)
    np.testing.assert_array_equal(samples[0].boxes, samples[1].boxes)
    assert any(sample.image.shape != samples[0].image.shape for sample in samples[2:])
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(boxes, before[1])
    assert samples[0].image.dtype == np.uint8


def test_images_without_boxes_go_through():
    sample = DETRAugmentation(**SMALL_DETR)(
        sample_of(smooth_image(50, 60)), np.random.default_rng(0)
    )
    assert sample.boxes.shape == (0, 4)
    assert sample.classes.shape == (0,)


def test_own_steps_compose():
    def brighten(sample, rng):
        return sample._replace(image=sample.image // 2 + 128)

    steps = Compose(steps=[brighten, ResizeShortSide(short_sides=[10])])
    sample = steps(sample_of(np.zeros((20, 20, 3), np.uint8)), np.random.default_rng(0))
    assert (sample.image.shape, sample.image.min()) == ((10, 10, 3), 128)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HorizontalFlip(probability=1.5), r"probability must lie in \[0, 1\], got 1.5"),
        (lambda: ResizeShortSide(short_sides=[]), "short_sides must be positive pixels"),
        (lambda: ResizeShortSide(short_sides=[0]), "short_sides must be positive pixels"),
        (lambda: ResizeShortSide(short_sides=[9], max_size=0), "max_size must be positive"),
        (lambda: RandomCrop(min_size=5, max_size=4), "got 5 and 4"),
        (lambda: ChooseOne(options=[]), "at least one option"),
    ],
)
def test_sizes_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
