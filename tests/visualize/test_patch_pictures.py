"""Patches are drawn in the colour of their boxes; boxes below the threshold are not drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from predet.visualize import PatchPicture, draw_patches
from predet.visualize.pictures import class_color


def picture(count: int, scores: list[float]) -> PatchPicture:
    boxes = np.array([[10.0 + 5 * i, 10, 40 + 5 * i, 80] for i in range(count)]).reshape(-1, 4)
    patches = np.full((count, 16, 16, 3), 128, np.uint8)
    image = np.full((100, 200, 3), 200, np.uint8)
    return PatchPicture(image, patches, boxes, boxes + 3, np.asarray(scores), "name")


def pixels_of(path: Path, color: tuple[int, int, int]) -> np.ndarray:
    """(N, 2) places (y, x) of exactly this colour."""
    return np.argwhere((np.asarray(Image.open(path)) == color).all(axis=2))


def test_frames_and_boxes_have_the_colour_of_their_patch(tmp_path: Path) -> None:
    path = draw_patches(tmp_path / "a.png", [picture(3, [0.9, 0.8, 0.7])], width=200)
    height = np.asarray(Image.open(path)).shape[0]
    row = height - (72 + 8 + 5 + 10)  # where the patches begin
    for number in range(3):
        places = pixels_of(path, class_color(number))
        below = places[places[:, 0] >= row]
        assert len(below) == 80 * 80 - 72 * 72  # the frame, and no more
        assert below[:, 1].min() == 10 + number * 85
        assert (places[:, 0] < row).sum() > 100  # the box that was cut out


def test_more_patches_than_fit_on_a_line_take_further_lines(tmp_path: Path) -> None:
    one = np.asarray(Image.open(draw_patches(tmp_path / "a.png", [picture(2, [1, 1])], width=100)))
    path = draw_patches(tmp_path / "b.png", [picture(5, [1] * 5)], width=100)
    three = np.asarray(Image.open(path))
    assert three.shape[0] == one.shape[0] + 2 * 85
    assert len(pixels_of(path, class_color(4))) > 80 * 80 - 72 * 72


def test_boxes_below_the_threshold_are_left_out(tmp_path: Path) -> None:
    every = draw_patches(tmp_path / "a.png", [picture(2, [0.9, 0.2])], width=200)
    sure = draw_patches(
        tmp_path / "b.png", [picture(2, [0.9, 0.2])], width=200, score_threshold=0.5
    )
    first, second = (np.asarray(Image.open(path)).astype(int) for path in (every, sure))
    np.testing.assert_array_equal(first[:, :215], second[:, :215])  # what was cut out, and patches
    green, orange = (np.asarray(class_color(number)) for number in (0, 1))
    changed = np.abs(first - second).sum(axis=2)[60:, 215:] > 30
    nearer_orange = np.abs(first - orange).sum(axis=2) < np.abs(second - orange).sum(axis=2)
    assert changed.sum() > 50
    assert nearer_orange[60:, 215:][changed].mean() > 0.5
    assert len(pixels_of(sure, tuple(green))) > 100


def test_no_images_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no pictures"):
        draw_patches(tmp_path / "a.png", [])
