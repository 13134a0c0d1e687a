"""Cells of two views that are matched show the same part of the image."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from predet.data.views import RandomView
from predet.projects.image_domain.views import (
    EncodedView,
    cell_centers,
    match_cells,
    pool,
    take,
)

SIZE, GRID = 64, 8


def smooth_image(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.resize(coarse, (160, 120), interpolation=cv2.INTER_CUBIC)


def encode(image: np.ndarray, make: RandomView, rng: np.random.Generator) -> EncodedView:
    """A view whose feature map is the mean colour of each cell."""
    view = make(image, rng)
    pixels = torch.from_numpy(view.image).permute(2, 0, 1)[None].float()
    feature_map = F.avg_pool2d(pixels, SIZE // GRID)
    to_view = torch.from_numpy(view.to_view)[None].float()
    return EncodedView((feature_map,), to_view, (SIZE, SIZE))


def flat(view: EncodedView) -> torch.Tensor:
    return view.maps[0].flatten(2).transpose(1, 2)


def test_centers_are_those_of_loops():
    rng = np.random.default_rng(0)
    for _ in range(5):
        view = encode(smooth_image(0), RandomView(size=SIZE), rng)
        centers, sides = cell_centers(view, (4, 8))
        matrix = view.to_view[0].double().numpy()
        for row in range(4):
            for column in range(8):
                point = np.array([(column + 0.5) * SIZE / 8, (row + 0.5) * SIZE / 4])
                expected = np.linalg.solve(matrix[:, :2], point - matrix[:, 2])
                np.testing.assert_allclose(centers[0, row * 8 + column], expected, atol=1e-3)
        expected = (SIZE / 8 / abs(matrix[0, 0]), SIZE / 4 / matrix[1, 1])
        np.testing.assert_allclose(sides[0, 0], expected, rtol=1e-4)


def test_centers_in_a_view_that_is_not_square():
    """Cells of 16 x 16 pixels of the view, which are 8 x 4 of the image."""
    view = EncodedView((), torch.tensor([[[2.0, 0, -4], [0, 4.0, -8]]]), (32, 64))
    centers, sides = cell_centers(view, (2, 4))
    assert centers[0, 4 + 1].tolist() == [(24 + 4) / 2, (24 + 8) / 4]
    assert sides[0, 0].tolist() == [8, 4]


def test_the_nearest_pairs_are_those_of_loops():
    rng = np.random.default_rng(1)
    image = smooth_image(0)
    views = [encode(image, RandomView(size=SIZE, area=(0.1, 0.6)), rng) for _ in range(2)]
    matches = match_cells(*views, (GRID, GRID), num_cells=20, max_distance=0.7)
    (here, size_here), (there, size_there) = (cell_centers(v, (GRID, GRID)) for v in views)
    side = torch.maximum(size_here, size_there)[0, 0]
    distances = np.array(
        [[float((((a - b) / side) ** 2).sum()) ** 0.5 for b in there[0]] for a in here[0]]
    )
    best = np.sort(distances.min(axis=1))[:20]
    found = distances[matches.first[0], matches.second[0]]
    np.testing.assert_allclose(np.sort(found), best, atol=1e-4)
    np.testing.assert_array_equal(matches.near[0], found <= 0.7)
    assert len(set(matches.first[0].tolist())) == 20


def test_near_is_told_in_sides_of_the_larger_cell():
    """Cells of 8 pixels of the image among cells of 32: those that are 6 pixels off are near."""
    views = [
        EncodedView((), torch.tensor([[[scale, 0, 0], [0, scale, 0]]]), (SIZE, SIZE))
        for scale in (1.0, 0.25)
    ]
    matches = match_cells(*views, (GRID, GRID), num_cells=GRID**2, max_distance=0.3)
    assert int(matches.near.sum()) == 4 * 4  # around the centre of each of four large cells
    assert matches.second[matches.near].unique().tolist() == [0, 1, GRID, GRID + 1]


def test_cells_as_far_apart_as_may_be_are_near():
    """The same cells of 8 pixels, moved by 4."""
    views = [
        EncodedView((), torch.tensor([[[1.0, 0, shift], [0, 1.0, 0]]]), (SIZE, SIZE))
        for shift in (0.0, 4.0)
    ]
    near = [
        int(match_cells(*views, (GRID, GRID), num_cells=GRID**2, max_distance=most).near.sum())
        for most in (0.49, 0.5)
    ]
    assert near == [0, GRID**2]


def differences(max_distance: float, wrong: bool = False) -> tuple[float, float]:
    """Mean difference in colour of matched cells, and of cells matched by chance."""
    make, rng = RandomView(size=SIZE, area=(0.3, 0.9)), np.random.default_rng(2)
    matched, chance = [], []
    for seed in range(30):
        image = smooth_image(seed)
        first, second = (encode(image, make, rng) for _ in range(2))
        geometry = second
        if wrong:  # the mirror image is forgotten
            to_view = second.to_view.clone()
            to_view[:, 0] *= -1
            to_view[:, 0, 2] += SIZE
            geometry = second._replace(to_view=to_view)
        found = match_cells(
            first, geometry, (GRID, GRID), num_cells=GRID**2, max_distance=max_distance
        )
        pair = take(flat(first), found.first), take(flat(second), found.second)
        gap = (pair[0] - pair[1]).abs().mean(dim=2)
        matched.append(gap[found.near])
        chance.append((flat(first) - flat(second)).abs().mean(dim=2).flatten())
    return float(torch.cat(matched).mean()), float(torch.cat(chance).mean())


def test_matched_cells_show_the_same_colours():
    """Up to a quarter of a cell's difference in place; not so if the geometry is wrong."""
    right, chance = differences(0.25)
    wrong, _ = differences(0.25, wrong=True)
    assert right < 8
    assert min(wrong, chance) > 25


def test_views_that_do_not_meet_have_no_near_cells():
    far = torch.tensor([[[1.0, 0, -500], [0, 1.0, -500]]])
    here = torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]]])
    maps = (torch.zeros(1, 2, GRID, GRID),)
    views = [EncodedView(maps, to_view, (SIZE, SIZE)) for to_view in (here, far)]
    matches = match_cells(*views, (GRID, GRID), num_cells=999, max_distance=1.0)
    assert matches.near.shape == (1, GRID**2)  # there are no more cells
    assert not matches.near.any()


def test_pooled_features_are_means_of_all_maps():
    maps = (torch.randn(2, 3, 4, 5), torch.randn(2, 6, 2, 2))
    expected = [[*maps[0][b].mean((1, 2)), *maps[1][b].mean((1, 2))] for b in range(2)]
    torch.testing.assert_close(pool(maps), torch.tensor(expected))
