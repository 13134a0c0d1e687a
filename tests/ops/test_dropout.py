"""Dropout: shares, expectation, gradients, and where its random numbers come from."""

from __future__ import annotations

import pytest
import torch

from predet.ops import extension
from predet.ops.dropout import (
    _run,
    _run_reference,
    add_dropout,
    dropout,
    dropout_reference,
    relu_dropout_,
)

native = pytest.mark.skipif(not extension.available(), reason="predet._C is not built")


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


def splitmix64(seed: int, index: int) -> int:
    """Number `index` of the stream, by Python's integers."""
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_the_stream_is_splitmix64():
    assert splitmix64(1234567, 0) == 6457827717110365317  # of the algorithm's authors
    for seed in (0, 5, 2**63 - 1, 2**63 + 17, 2**64 - 1):
        words = [splitmix64(seed, i) for i in range(26)]
        draws = [word >> 16 * part & 0xFFFF for word in words for part in range(4)][:101]
        kept = torch.tensor([draw < 0.7 * 2**16 for draw in draws])
        assert torch.equal(dropout_reference(torch.ones(101), 0.3, seed) != 0, kept)


NO_OPTIONS = {"rectify": False, "base": None, "gate": None, "output": None}


@native
@pytest.mark.parametrize("dtype", list(extension.DTYPE_CODES))
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 3 * 256 * 64 + 7])
def test_native_equals_the_reference_to_the_bit(dtype: torch.dtype, count: int):
    torch.manual_seed(0)
    x, other = torch.randn(count).to(dtype), torch.randn(count).to(dtype)
    x[2::5], x[3::7] = float("nan"), 0
    threads, chosen = torch.get_num_threads(), extension.native().instruction_set()
    try:
        for name in extension.native().instruction_sets():
            extension.native().use_instruction_set(name)
            for number in (1, 3):
                torch.set_num_threads(number)
                for options in ({}, {"rectify": True}, {"base": other}, {"gate": other}):
                    every = {
                        "rectify": False,
                        "base": None,
                        "gate": None,
                        "output": None,
                        **options,
                    }
                    found = _run(x, 0.3, 2**63 + 5, **options)
                    expected = _run_reference(x, 0.3, 2**63 + 5, **every)
                    assert found.dtype == dtype
                    assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7)), options
    finally:
        torch.set_num_threads(threads)
        extension.native().use_instruction_set(chosen)


@native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: -1}, "count must not be negative"),
        ({1: 2**62}, "too large"),
        ({2: 4}, "unknown dtype"),
        ({4: 65537}, "kept must be"),
        ({4: -1}, "kept must be"),
        ({0: 0}, "threads must be positive"),
        ({6: True, 7: [1, 1, 0, 1]}, "only one"),
        ({7: [0, 0, 0, 8]}, "no memory"),
    ],
)
def test_the_binding_refuses(change: dict, message: str):
    x = torch.zeros(4)
    arguments = [1, 4, 0, 0, 100, 1.0, False, [x.data_ptr(), 0, 0, x.data_ptr()]]
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises(ValueError, match=message):
        extension.native().dropout(*arguments)


@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_relu_and_dropout_at_once(monkeypatch: pytest.MonkeyPatch, built: bool, layout: str):
    """Also its gradient, without the native extension too."""
    if not built:
        monkeypatch.setattr(extension, "supports", lambda *_: False)
    torch.manual_seed(0)
    x = torch.randn(6, 8, dtype=torch.float64)
    x = (x.mT if layout == "transposed" else x).requires_grad_()

    def run(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return relu_dropout_(x * 1, 0.4, training=True)

    found = run(x)
    torch.manual_seed(3)
    torch.testing.assert_close(found, dropout(x.relu(), 0.4, training=True))
    assert torch.autograd.gradcheck(run, x)
    assert run(torch.full((40,), float("nan"))).isnan().all()
    assert torch.equal(relu_dropout_(x * 1, 0.4, training=False), x.relu())


def test_relu_and_dropout_keep_one_tensor():
    x = torch.randn(100, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = relu_dropout_(x * 1, 0.5, training=True)
        dropout(y, 0.5, training=True)
        add_dropout(y, y, 0.5, training=True)
    assert [tensor.data_ptr() for tensor in kept] == [y.data_ptr()]


def test_second_derivatives():
    x = torch.randn(20, dtype=torch.float64, requires_grad=True)

    def run(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return add_dropout(x, dropout(x * x * x, 0.4, True), 0.3, True)

    assert torch.autograd.gradgradcheck(run, x)
