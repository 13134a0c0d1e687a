"""Figures 4 and 5 of DETReg: colours and places of dots, brightness of maps."""

from __future__ import annotations

from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from predet.visualize import GradientPicture, draw_gradients, draw_queries
from predet.visualize.gradients import heat
from predet.visualize.queries import SHAPES, shapes_of


def test_shapes_are_told_in_pixels() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 20, 10], [5, 5, 15, 40], [3, 3, 3, 3]])
    assert shapes_of(boxes.astype(float)).tolist() == [
        "square",
        "square",
        "horizontal",
        "vertical",
        "square",
    ]


def test_dots_lie_where_boxes_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images of unlike sizes; one box of each query in each."""
    sizes = np.array([[100, 200], [50, 50]])
    boxes = np.array(
        [[[0, 0, 200, 100], [150, 70, 170, 90]], [[10, 0, 20, 50], [0, 0, 20, 10]]], float
    )
    figures = []
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda figure, path: figures.append(figure)
    )
    draw_queries(tmp_path / "q.png", {"a": boxes, "b": boxes[:, ::-1]}, sizes, num_queries=5)
    axes = figures[0].axes
    assert [axis.get_title() for axis in axes] == ["query 1", "query 2", "", ""]
    first, second = (axis.collections[0] for axis in axes[:2])
    np.testing.assert_allclose(first.get_offsets(), [[0.5, 0.5], [0.3, 0.5]])
    np.testing.assert_allclose(second.get_offsets(), [[0.8, 0.8], [0.2, 0.1]])
    np.testing.assert_allclose(axes[2].collections[0].get_offsets(), second.get_offsets())
    colors = [to_hex(color).upper() for color in first.get_facecolors()]
    assert colors == [SHAPES["horizontal"], SHAPES["vertical"]]
    assert first.get_sizes()[0] > 4 * first.get_sizes()[1]
    assert axes[0].get_ylim() == (1, 0)  # y of images goes down


def test_pictures_are_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 40, (6, 12, 2))
    boxes = np.concatenate([boxes, boxes + 8], axis=2)
    path = draw_queries(tmp_path / "sub/q.png", {"a": boxes}, np.full((6, 2), 48), title="t")
    assert np.asarray(Image.open(path)).std() > 10
    image = rng.integers(0, 256, (30, 40, 3), np.uint8)
    picture = GradientPicture(image, boxes[0, 0], 0.5, {"x": np.ones((30, 40))}, "a.png")
    path = draw_gradients(tmp_path / "g.png", [picture, picture], width=80)
    assert np.asarray(Image.open(path)).std() > 10
    with pytest.raises(ValueError, match="no boxes of queries"):
        draw_queries(tmp_path / "q.png", {}, np.zeros((0, 2)))


def test_light_is_where_the_map_is_large() -> None:
    image = np.full((20, 20, 3), 200, np.uint8)
    values = np.zeros((20, 20))
    values[5:9, 6], values[5:9, 7] = 1.0, 0.5
    lit = heat(image, values).astype(int).sum(axis=2)
    assert lit[5, 6] > lit[5, 7] > lit[0, 0]
    assert heat(image, np.zeros((20, 20))).max() <= 71  # nothing matters: the image, dark
