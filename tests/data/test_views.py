"""Views: their geometry, their colours against plain formulas, and that they are reproducible."""

from __future__ import annotations

import colorsys
import pickle

import cv2
import numpy as np
import pytest
import torch

from predet.data.formats import load_dataset
from predet.data.images import BadSampleError, read_image
from predet.data.loader import build_train_loader
from predet.data.views import ColorJitter, MultiViewMapper, RandomBlur, RandomView


def coordinates(height: int, width: int) -> np.ndarray:
    """An image whose red is x and whose green is y of the pixel."""
    rows, columns = np.mgrid[:height, :width]
    return np.dstack([columns, rows, np.zeros_like(rows)]).astype(np.uint8)


def smooth_image(height: int, width: int, seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def back(points: np.ndarray, to_view: np.ndarray) -> np.ndarray:
    """Points (N, 2) of a view -> of the original image, by a solver of its own."""
    return np.linalg.solve(to_view[:, :2], (points - to_view[:, 2]).T).T


def look(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Bilinear colours at points (N, 2) in continuous pixels. -> (N, 3)"""
    x, y = (points.astype(np.float32) - 0.5).T
    return cv2.remap(image.astype(np.float32), x[:, None], y[:, None], cv2.INTER_LINEAR)[:, 0]


@pytest.mark.parametrize(("height", "width", "size"), [(200, 240, 64), (90, 250, 96), (40, 30, 64)])
def test_view_knows_where_each_of_its_pixels_comes_from(height, width, size):
    """The image holds its own coordinates, so every pixel of the view tells where it is from."""
    make, rng = RandomView(size=size), np.random.default_rng(0)
    rows, columns = np.mgrid[2 : size - 2, 2 : size - 2]
    places = np.column_stack([columns.ravel(), rows.ravel()])
    mirrored = set()
    for _ in range(20):
        view = make(coordinates(height, width), rng)
        assert view.image.shape == (size, size, 3)
        assert view.image.dtype == np.uint8
        source = back(places + 0.5, view.to_view)
        shown = view.image[rows, columns, :2].reshape(-1, 2) + 0.5
        # Inside only: at a border that is enlarged, resizing repeats the last pixel.
        inside = (shown > 1).all(axis=1) & (shown < (width - 1, height - 1)).all(axis=1)
        assert np.abs(source - shown)[inside].max() < 1.1
        mirrored.add(view.to_view[0, 0] < 0)
    assert mirrored == {True, False}


def test_a_point_shows_the_same_pixels_in_both_views():
    image = smooth_image(180, 220, seed=1)
    make, rng = RandomView(size=96, area=(0.3, 1.0)), np.random.default_rng(3)
    compared = 0
    for _ in range(20):
        first, second = make(image, rng), make(image, rng)
        points = rng.uniform((0, 0), (220, 180), (2000, 2))
        there = [points @ v.to_view[:, :2].T + v.to_view[:, 2] for v in (first, second)]
        common = np.logical_and.reduce([((p > 2) & (p < 94)).all(axis=1) for p in there])
        colors = [look(v.image, p[common]) for v, p in zip((first, second), there, strict=True)]
        compared += int(common.sum())
        if common.any():
            assert np.abs(colors[0] - colors[1]).mean() < 1.5
    assert compared > 2000


def test_a_wrong_geometry_would_be_seen():
    """The same comparison, with the mirror image forgotten."""
    image = smooth_image(180, 220, seed=1)
    make = RandomView(size=96, flip_probability=1.0)
    view = make(image, np.random.default_rng(0))
    points = np.random.default_rng(1).uniform(5, 91, (500, 2))
    right = look(image, back(points, view.to_view))
    forgotten = view.to_view.copy()
    forgotten[0] = [-forgotten[0, 0], 0, 96 - forgotten[0, 2]]
    wrong = look(image, back(points, forgotten))
    assert np.abs(look(view.image, points) - right).mean() < 1.5
    assert np.abs(look(view.image, points) - wrong).mean() > 15


def test_windows_have_the_area_and_the_shape_that_were_asked_for():
    make = RandomView(size=32, area=(0.1, 0.3), aspect=(0.5, 2.0), flip_probability=0.0)
    rng = np.random.default_rng(0)
    image = np.zeros((300, 400, 3), np.uint8)
    scales = np.array([np.diag(make(image, rng).to_view[:, :2]) for _ in range(300)])
    sides = 32 / scales  # width and height of each window
    share = sides.prod(axis=1) / (300 * 400)
    aspect = sides[:, 0] / sides[:, 1]
    assert 0.095 < share.min() < 0.12
    assert 0.28 < share.max() < 0.305
    assert 0.49 < aspect.min() < 0.6
    assert 1.7 < aspect.max() < 2.05


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (5, 4)])
def test_images_smaller_than_the_view_are_enlarged(height, width):
    image = coordinates(height, min(width, 255))
    for seed in range(10):
        view = RandomView(size=32)(image, np.random.default_rng(seed))
        assert view.image.shape == (32, 32, 3)
        assert np.isfinite(view.to_view).all()


def test_jitter_equals_the_steps_one_by_one():
    """Saturation, brightness and contrast in turn, in floating point."""
    image = smooth_image(20, 30, seed=2) // 3 + 80  # nothing is cut off
    jitter = ColorJitter(
        brightness=0.2, contrast=0.2, saturation=0.4, hue=0.0, probability=1.0, gray_probability=0.0
    )
    changed = jitter(image, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    rng.random()
    brightness, contrast, saturation = (1 + rng.uniform(-x, x) for x in (0.2, 0.2, 0.4))
    luma = (0.299, 0.587, 0.114)
    expected = image.astype(float)
    expected = saturation * expected + (1 - saturation) * (expected @ luma)[..., None]
    expected *= brightness
    expected = contrast * expected + (1 - contrast) * (expected @ luma).mean()
    assert 0 < expected.min() < expected.max() < 255
    assert np.abs(changed - expected).max() < 1.0
    assert np.abs(changed.astype(int) - image).mean() > 3


@pytest.mark.parametrize("turn", [0.1, -0.25])
def test_hue_is_turned_and_luma_is_kept(turn):
    class Fixed:
        """Draws the turn, and nothing else."""

        def random(self):
            return 0.0

        def uniform(self, low, high):
            return turn if high == 0.5 else 0.0

    jitter = ColorJitter(
        brightness=0, contrast=0, saturation=0, hue=0.5, probability=1.0, gray_probability=0.0
    )
    image = np.full((1, 1, 3), (140, 110, 100), np.uint8)
    changed = jitter(image, Fixed())[0, 0].astype(float)
    before, after = (colorsys.rgb_to_hsv(*(c / 255)) for c in (image[0, 0].astype(float), changed))
    difference = (after[0] - before[0] + 0.5) % 1 - 0.5
    assert abs(abs(difference) - abs(turn)) < 0.07  # YIQ is not HSV
    assert abs(changed @ (0.299, 0.587, 0.114) - 117.7) < 1


def test_gray_blur_and_doing_nothing():
    image, rng = smooth_image(20, 30, seed=2), np.random.default_rng(0)
    gray = ColorJitter(probability=0.0, gray_probability=1.0)(image, rng)
    expected = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    assert np.abs(gray.astype(int) - expected[..., None]).max() <= 1
    assert ColorJitter(probability=0.0, gray_probability=0.0)(image, rng) is image
    assert RandomBlur(probability=0.0)(image, rng) is image
    noise = rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)
    blurred = RandomBlur(sigma=(2, 2), probability=1.0)(noise, rng)
    assert blurred.std() < 0.3 * noise.std()


def mapper(*sizes: int) -> MultiViewMapper:
    changes = [ColorJitter(), RandomBlur()]
    return MultiViewMapper(views=[RandomView(size=s, photometric=changes) for s in sizes])


def test_mapper_gives_the_batch_contract_and_all_views(image_folder):
    record = load_dataset(image_folder)[2]
    item = mapper(32, 32, 16)(record, np.random.default_rng(0))
    assert set(item) == {"image", "views", "height", "width", "image_id", "file_name", "key"}
    assert [tuple(v["image"].shape) for v in item["views"]] == [(3, 32, 32)] * 2 + [(3, 16, 16)]
    assert all(v["image"].dtype == torch.uint8 for v in item["views"])
    assert all(v["to_view"].shape == (2, 3) for v in item["views"])
    assert item["image"] is item["views"][0]["image"]
    assert (item["height"], item["width"]) == read_image(record.path).shape[:2]
    assert not item["views"][0]["image"].equal(item["views"][1]["image"])


def test_views_are_a_function_of_seed_epoch_and_image(image_folder):
    dataset = load_dataset(image_folder)
    loaders = [
        build_train_loader(
            dataset=dataset,
            mapper=pickle.loads(pickle.dumps(mapper(24, 24))),
            total_batch_size=4,
            num_workers=workers,
            seed=seed,
        )
        for workers, seed in ((0, 1), (2, 1), (0, 2))
    ]
    streams = [loader.batches(1) for loader in loaders]
    batches = [[next(stream) for _ in range(2)] for stream in streams]
    for stream in streams:
        stream.close()

    def same(first, second) -> bool:
        pairs = [
            (a["views"][i], b["views"][i])
            for one, other in zip(first, second, strict=True)
            for a, b in zip(one, other, strict=True)
            for i in range(2)
        ]
        return all(x["image"].equal(y["image"]) for x, y in pairs)

    assert same(batches[0], batches[1])
    assert not same(batches[0], batches[2])
    assert not same(batches[0][:1], batches[0][1:])  # another epoch or other images


def test_unreadable_file_is_a_bad_sample(image_folder):
    record = load_dataset(image_folder)[0]
    with pytest.raises(BadSampleError, match="missing"):
        mapper(32, 32)(record._replace(path=str(image_folder / "missing.png")), None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomView(size=0), "size must be at least one pixel, got 0"),
        (lambda: RandomView(size=9, area=(0.5, 0.2)), r"area: expected .* got \(0.5, 0.2\)"),
        (lambda: RandomView(size=9, aspect=(0, 1)), r"aspect: expected .* got \(0, 1\)"),
        (lambda: RandomView(size=9, flip_probability=2), r"flip_probability must lie .* got 2"),
        (lambda: ColorJitter(hue=0.6), r"hue must lie in \[0, 0.5\], got 0.6"),
        (lambda: ColorJitter(brightness=-1), r"brightness must lie in \[0, 1\], got -1"),
        (lambda: RandomBlur(sigma=(0, 1)), r"sigma: expected 0 < least .* got \(0, 1\)"),
        (lambda: MultiViewMapper(views=[RandomView(size=9)]), "needs two or more views, got 1"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
