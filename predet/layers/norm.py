"""Normalisation layers by name, and batch normalisation whose statistics never change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NormName = Literal["frozen_bn", "bn", "sync_bn", "gn"]

GROUPS = 32  # of every group normalisation (Wu and He, 2018)


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with fixed statistics and a fixed affine map, all of them buffers.

    Keys are those of `nn.BatchNorm2d`, less `num_batches_tracked`, which is dropped on loading.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift of each channel, (C,) both: what this layer does."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> same shape and dtype."""
        scale, shift = self.affine()
        # In the dtype of x: under autocast fp32 factors would turn every activation into fp32.
        scale, shift = scale.to(x.dtype)[:, None, None], shift.to(x.dtype)[:, None, None]
        return (x * scale).add_(shift)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)


def convolve_and_normalize(convolution: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """norm(convolution(x)), (B, C, H, W) -> (B, D, H', W').

    A frozen norm becomes part of the convolution: it scales the few weights instead of the many
    pixels, and nothing is kept for it in training. That is the same but for rounding.
    """
    if not isinstance(norm, FrozenBatchNorm2d):
        return norm(convolution(x))
    assert convolution.bias is None
    scale, shift = norm.affine()
    options = (
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
    )
    return _ScaledConvolution.apply(
        x, convolution.weight, scale[:, None, None, None], shift, options
    )


class _ScaledConvolution(torch.autograd.Function):
    """F.conv2d(x, weight * scale, shift), which makes weight * scale anew in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, options: tuple
    ) -> Tensor:
        ctx.save_for_backward(x, weight, scale)
        ctx.options = options
        return F.conv2d(x, weight * scale, shift, *options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.options
        wanted = [*ctx.needs_input_grad[:2], False]
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad, x.to(grad.dtype), (weight * scale).to(grad.dtype), None,
            stride, padding, dilation, False, [0, 0], groups, wanted,
        )  # fmt: skip
        if grad_x is not None:
            grad_x = grad_x.to(x.dtype)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype) * scale
        return grad_x, grad_weight, None, None, None


def norm_layer(name: NormName) -> Callable[[int], nn.Module]:
    """A constructor that takes the number of channels.

    Raises:
        ValueError: `name` is unknown; or, from the constructor of "gn", channels that do not
            divide into 32 groups.
    """
    constructors: dict[str, Callable[[int], nn.Module]] = {
        "frozen_bn": FrozenBatchNorm2d,
        "bn": nn.BatchNorm2d,
        "sync_bn": nn.SyncBatchNorm,
        "gn": group_norm,
    }
    if name not in constructors:
        raise ValueError(f"norm must be one of {sorted(constructors)}, got {name!r}")
    return constructors[name]


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with 32 groups.

    Raises:
        ValueError: channels do not divide into 32 groups.
    """
    if channels % GROUPS != 0:
        raise ValueError(
            f"group normalisation has {GROUPS} groups: the number of channels (hidden_dim) must be "
            f"a multiple of {GROUPS}, got {channels}"
        )
    return nn.GroupNorm(GROUPS, channels)


def freeze_batch_norm(module: nn.Module) -> nn.Module:
    """Turn every batch normalisation inside into `FrozenBatchNorm2d` of the same values.

    Returns the module itself, or the replacement where it is a batch normalisation itself.
    """
    if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
        frozen = FrozenBatchNorm2d(module.num_features, module.eps)
        frozen.load_state_dict(module.state_dict())
        return frozen
    for name, child in module.named_children():
        setattr(module, name, freeze_batch_norm(child))
    return module
