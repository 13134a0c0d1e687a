"""Convolutions of stride 2 over narrow maps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from predet.d2 import LazyConfig, instantiate
from predet.layers.convolution import of_any_width


def weight_gradient(convolution: nn.Conv2d, maps: Tensor, dtype: torch.dtype) -> Tensor:
    convolution.zero_grad()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        out = convolution(maps)
    out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype))
    return convolution.weight.grad.clone()


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (5, 1), (1, 2), (4, 3)])
def test_it_is_the_plain_convolution(size):
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    maps = torch.randn(2, 4, *size)
    torch.testing.assert_close(of_any_width(copy.deepcopy(plain))(maps), plain(maps))


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (5, 1), (2, 2)])
def test_gradients_in_bfloat16_are_those_in_float32(size):
    torch.manual_seed(0)
    convolution = of_any_width(nn.Conv2d(64, 64, 3, stride=2, padding=1))
    for _ in range(8):
        # The wrong ones depend on what the memory held before.
        maps = torch.randn(8, 64, *size).bfloat16().float()
        exact = weight_gradient(convolution, maps, torch.float32)
        rounded = weight_gradient(convolution, maps, torch.bfloat16)
        assert (rounded - exact).abs().max() < 0.02 * exact.abs().max()


@pytest.mark.parametrize("name", ["retinanet", "fcos", "deformable_detr"])
def test_detectors_take_a_single_column_as_two(name):
    config = LazyConfig.load(f"configs/tiny/{name}.py")
    config.data.num_classes = 3
    model = instantiate(config.model)
    strided = [
        layer
        for part in ("neck", "input_proj")
        for layer in getattr(model, part, nn.Module()).modules()
        if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2)
    ]
    seen = []
    for layer in strided:
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
        layer(torch.zeros(1, layer.in_channels, 3, 1))
    assert set(seen) == {2}
