"""Dropout: shares, expectation, gradients, and where its random numbers come from."""

from __future__ import annotations

import pytest
import torch

from predet.layers.dropout import add_dropout, dropout


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_shares_and_values(probability: float, dtype: torch.dtype):
    torch.manual_seed(0)
    x = torch.full((400_003,), 2.0, dtype=dtype)
    y = dropout(x, probability, training=True)
    kept = y != 0
    # Five standard deviations of a binomial share.
    room = 5 * (probability * (1 - probability) / len(x)) ** 0.5
    assert kept.float().mean().item() == pytest.approx(1 - probability, abs=room)
    torch.testing.assert_close(y[kept], x[kept] / (1 - probability), rtol=1e-2, atol=0)
    assert y.dtype == dtype
    assert y.double().mean().item() == pytest.approx(2, abs=2 * room / (1 - probability) + 1e-2)


def test_neighbours_are_independent():
    torch.manual_seed(0)
    kept = (dropout(torch.ones(200_000), 0.5, training=True) != 0).double()
    for distance in (1, 2, 3, 4, 8, 64):
        both = (kept[:-distance] * kept[distance:]).mean().item()
        assert both == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 2e5) ** 0.5 * 2), distance


def test_borders():
    x = torch.randn(7)
    assert torch.equal(dropout(x, 0.5, training=False), x)
    assert torch.equal(dropout(x, 0.0, training=True), x)
    assert torch.equal(dropout(x, 1.0, training=True), torch.zeros(7))
    assert torch.equal(dropout(x, 1e-9, training=True), x)
    assert dropout(torch.zeros(0, 3), 0.5, training=True).shape == (0, 3)
    assert dropout(torch.tensor([float("nan")] * 50), 0.5, training=True).isnan().all()


def test_the_generator_of_torch_decides():
    x = torch.ones(1000)
    torch.manual_seed(0)
    first, second = dropout(x, 0.5, training=True), dropout(x, 0.5, training=True)
    torch.manual_seed(0)
    assert torch.equal(dropout(x, 0.5, training=True), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_gradients(layout: str):
    torch.manual_seed(0)
    x, update = (torch.randn(2, 5, 7, dtype=torch.float64) for _ in range(2))
    if layout == "transposed":
        x, update = x.mT, update.mT
    x.requires_grad_()
    update.requires_grad_()

    def seeded(function):
        def run(*inputs):
            torch.manual_seed(3)
            return function(*inputs)

        return run

    assert torch.autograd.gradcheck(seeded(lambda x: dropout(x, 0.4, True)), x)
    assert torch.autograd.gradcheck(seeded(lambda x, u: add_dropout(x, u, 0.4, True)), (x, update))
    added = seeded(lambda: add_dropout(x, update, 0.4, True))()
    torch.testing.assert_close(added, x + seeded(lambda: dropout(update, 0.4, True))())


def test_adding_under_autocast_keeps_the_wider_dtype():
    x, update = torch.randn(50, requires_grad=True), torch.randn(50).bfloat16().requires_grad_()
    total = add_dropout(x, update, 0.5, training=True)
    assert total.dtype == torch.float32
    total.sum().backward()
    assert (x.grad.dtype, update.grad.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(x.grad, torch.ones(50))
    assert torch.equal(update.grad != 0, (total - x).abs() > 0)
