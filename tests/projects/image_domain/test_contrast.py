"""The losses against plain loops, the report of a collapse, and bad input."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from image_domain_parts import Constant, SmallBackbone, make_batch, make_method
from torch import nn
from torch.nn import functional as F

from predet.projects.image_domain.collapse import COLLAPSED, CollapseWatch, spread
from predet.projects.image_domain.contrast import contrast


def plain_contrast(first, second, temperature, valid) -> float:
    """InfoNCE by loops, in double precision."""
    rows = [index for index in range(len(first)) if valid[index]]
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (first, second)]
    total = 0.0
    for one, other in (unit, unit[::-1]):
        for row in rows:
            scores = [math.exp(float(one[row] @ other[column]) / temperature) for column in rows]
            total -= math.log(scores[rows.index(row)] / sum(scores))
    return total / (2 * len(rows))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_contrast_equals_loops(temperature):
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 9, 5))
    second = second + 0.5 * first
    valid = np.array([1, 1, 0, 1, 0, 1, 1, 1, 0], bool)
    sides = [torch.from_numpy(side) for side in (first, second)]
    found = contrast(*sides, temperature=temperature, valid=torch.from_numpy(valid))
    expected = plain_contrast(first, second, temperature, valid)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    everyone = contrast(*sides, temperature=temperature)
    expected = plain_contrast(first, second, temperature, np.ones(9, bool))
    assert float(everyone) == pytest.approx(expected, rel=1e-5)
    assert abs(float(everyone) - float(found)) > 0.01  # invalid rows would be seen


def test_contrast_knows_its_bounds():
    """log N for features that tell nothing; nearly nothing for pairs that are alone alike."""
    same = torch.ones(8, 4)
    assert float(contrast(same, same, temperature=0.2)) == pytest.approx(math.log(8))
    apart = torch.eye(8)
    assert float(contrast(apart, 3 * apart, temperature=0.02)) < 1e-6


def test_rows_that_are_not_valid_get_no_gradient():
    sides = [torch.randn(6, 3, requires_grad=True) for _ in range(2)]
    valid = torch.tensor([True, False, True, True, False, True])
    contrast(*sides, temperature=0.2, valid=valid).backward()
    for side in sides:
        assert (side.grad[~valid] == 0).all()
        assert (side.grad[valid].abs().sum(dim=1) > 0).all()
    loss = contrast(*sides, temperature=0.2, valid=torch.zeros(6, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(side.grad.isfinite().all() for side in sides)


def test_losses_are_those_of_the_parts():
    """Once more from the features, with nothing of the method but its heads."""
    weights = {"loss_global": 2.0, "loss_local": 0.5}
    method = make_method(level=1, num_cells=64, max_distance=0.5, weights=weights)
    batch = make_batch(5)
    losses = {name: value.detach() for name, value in method(batch).items()}
    views = method.encode_views(batch)
    pooled = [torch.cat([m.mean(dim=(2, 3)) for m in view.maps], dim=1) for view in views]
    images = method.global_head(torch.cat(pooled)).detach().double().numpy()
    expected = 2 * plain_contrast(images[:5], images[5:], 0.2, np.ones(5, bool))
    assert float(losses["loss_global"]) == pytest.approx(expected, rel=1e-4)
    rows, near = [], []
    for index, sample in enumerate(batch):
        centers = []
        for view in sample["views"]:
            matrix = view["to_view"].numpy()
            y, x = np.mgrid[:8, :8]
            points = (np.stack([x.ravel(), y.ravel()], axis=1) + 0.5) * 8  # stride 8
            centers.append(
                (
                    np.linalg.solve(matrix[:, :2], (points - matrix[:, 2]).T).T,
                    np.diag(matrix[:, :2]),
                )
            )
        side = np.maximum(*(8 / np.abs(scale) for _, scale in centers))
        gaps = np.linalg.norm((centers[0][0][:, None] - centers[1][0][None]) / side, axis=2)
        rows += [(index, cell, int(gaps[cell].argmin())) for cell in range(64)]
        near.append(gaps.min(axis=1) <= 0.5)
    flat = [view.maps[1].flatten(2).transpose(1, 2) for view in views]
    sides = [torch.stack([flat[v][row[0], row[1 + v]] for row in rows]) for v in (0, 1)]
    places = method.local_head(torch.cat(sides)).detach().double().numpy()
    expected = 0.5 * plain_contrast(places[:320], places[320:], 0.2, np.concatenate(near))
    assert 0.1 < np.mean(near) < 0.9
    assert float(losses["loss_local"]) == pytest.approx(expected, rel=1e-4)


def test_every_parameter_is_trained_and_a_step_lowers_the_losses():
    method, batch = make_method(), make_batch(8)
    optimizer = torch.optim.AdamW(method.parameters(), lr=2e-3)
    history = []
    for _ in range(12):
        losses = method(batch)
        history.append({name: value.item() for name, value in losses.items()})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
        optimizer.step()
    assert all(history[-1][name] < 0.8 * history[0][name] for name in history[0])


def test_evaluation_gives_the_pooled_features_of_the_image():
    method, batch = make_method().eval(), make_batch(3)
    with torch.no_grad():
        rows = torch.stack([output["features"] for output in method(batch)])
        pixels = torch.stack([sample["image"] for sample in batch]).float()
        pixels = (pixels - method.normalizer.pixel_mean) / method.normalizer.pixel_std
        maps = method.backbone(pixels)
    expected = torch.cat([m.flatten(2).mean(dim=2) for m in maps], dim=1)
    torch.testing.assert_close(rows, expected)


def test_views_of_several_sizes_are_encoded_in_their_order():
    """What a method with many crops needs."""
    method, batch = make_method(), make_batch(2, sizes=(64, 32, 64, 32, 32))
    with torch.no_grad():
        views = method.encode_views(batch)
        for place, view in enumerate(views):
            assert view.size == (batch[0]["views"][place]["image"].shape[1],) * 2
            images = [sample["views"][place]["image"] for sample in batch]
            alone = method.backbone(method.normalizer(images).pixels)
            for found, expected in zip(view.maps, alone, strict=True):
                torch.testing.assert_close(found, expected)
            expected = torch.stack([sample["views"][place]["to_view"] for sample in batch])
            torch.testing.assert_close(view.to_view, expected.float())


def test_spread_is_one_for_unrelated_and_zero_for_equal_features():
    assert float(spread(torch.eye(50))) == pytest.approx(math.sqrt(1 - 1 / 50))
    assert float(spread(torch.ones(5, 3) * torch.arange(1, 6)[:, None])) < 1e-3  # length is nothing
    features = torch.randn(20, 7)
    mean = F.normalize(features, dim=1).mean(dim=0)
    assert float(spread(features)) == pytest.approx(math.sqrt(1 - float(mean @ mean)), rel=1e-4)


def test_a_collapsed_encoder_is_reported(caplog):
    batch = make_batch(4)
    with caplog.at_level(logging.WARNING):
        healthy = make_method()
        healthy(batch)
        assert not caplog.records
        assert healthy.watch.last > 3 * COLLAPSED
        collapsed = make_method(backbone=Constant())
        collapsed(batch)
    assert collapsed.watch.last < COLLAPSED
    (record,) = caplog.records
    assert "the backbone's features have collapsed: their spread over 4 images is" in record.message


def test_watch_looks_now_and_then_and_reports_nan(caplog):
    watch = CollapseWatch(period=3)
    with caplog.at_level(logging.WARNING):
        for step in range(7):
            watch(torch.full((4, 2), float("nan")) if step == 3 else torch.randn(4, 2))
            if step == 1:
                first = watch.last
            if step == 2:
                assert watch.last == first  # the second and third call measure nothing
    assert len(caplog.records) == 1
    assert "at call 4" in caplog.records[0].message
    watch(torch.randn(1, 2))  # of one image there is nothing to say


def test_features_that_are_nan_are_not_hidden():
    class Broken(SmallBackbone):
        def forward(self, pixels):
            return tuple(m * float("nan") for m in super().forward(pixels))

    losses = make_method(backbone=Broken())(make_batch(3))
    assert all(value.isnan() for value in losses.values())


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (lambda: make_batch(1), "at least 2 images in a batch of all processes, got 1"),
        (lambda: make_batch(2, sizes=(64, 64, 64)), "two views of one size, got views of .*64"),
        (lambda: make_batch(2, sizes=(64, 32)), "two views of one size, got views of .*32"),
        (lambda: make_batch(2) + make_batch(1, sizes=(64, 32)), "views of the same sizes, got"),
        (lambda: [{"image": torch.zeros(3, 9, 9), "key": "a"}], r"needs views.*\['image', 'key'\]"),
    ],
)
def test_bad_batches_are_named(batch, message):
    with pytest.raises(ValueError, match=message):
        make_method()(batch())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 2}, "level must name one of the backbone's 2 maps, got 2"),
        ({"temperature": 0.0}, "temperature > 0 and num_cells >= 1, got 0.0 and 16"),
        ({"check_period": 0}, "period must be 1 or more, got 0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_method(**options)


def test_views_that_do_not_meet_train_all_the_same():
    batch = make_batch(3)
    for sample in batch:
        sample["views"][1]["to_view"][:, 2] += 10_000
    method = make_method()
    losses = method(batch)
    assert float(losses["loss_local"]) == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in method.parameters())


def test_heads_keep_no_statistics():
    """So evaluation, averages and resume have nothing to carry."""
    method = make_method()
    assert not [name for name in method.state_dict() if "running" in name]
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method(make_batch(3))
    assert all(value.equal(before[name]) for name, value in method.state_dict().items())
    assert isinstance(method.backbone, nn.Module)
