"""The native multi-scale deformable attention, as the operator `torch.ops.predet.ms_deform_attn`.

Models call `predet.ops.ms_deform_attn`, which holds the meaning, the legend of shapes and the
reference. Here is what turns the kernels of csrc/ms_deform_attn into an operator of torch: checks,
memory, gradients, shapes for tracing and the rule under autocast.

One operator serves both entry points. With reference points it is the fused one: `points` are
offsets and `weights` are logits. Without, `points` are locations and `weights` are final.

dtypes: the value decides (fp32, bf16, fp16, fp64); the output has its dtype. Points and reference
points are fp32, for an fp64 value fp64. Weights have either of the two dtypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from predet.ops import extension

_LIBRARY = torch.library.Library("predet", "FRAGMENT")
_INPUTS = (
    "Tensor value, SymInt[] spatial_shapes, Tensor? reference_points, Tensor points, Tensor weights"
)
_LIBRARY.define(f"ms_deform_attn({_INPUTS}) -> Tensor")
_LIBRARY.define(
    f"ms_deform_attn_backward(Tensor grad_output, {_INPUTS}, bool[] wanted)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
_operator = torch.ops.predet.ms_deform_attn.default
_backward_operator = torch.ops.predet.ms_deform_attn_backward.default


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """What values of `dtype` are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def ms_deform_attn_native(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor | None,
    points: Tensor,
    weights: Tensor,
) -> Tensor:
    """The operator, with points brought to the dtype that it takes. -> (B, Q, H * C)"""
    dtype = arithmetic_dtype(value.dtype)
    points = points.to(dtype)
    if reference_points is not None:
        reference_points = reference_points.to(dtype)
    if weights.dtype != value.dtype:
        weights = weights.to(dtype)
    flat = [size for shape in spatial_shapes for size in shape]
    return _operator(value, flat, reference_points, points, weights)


def _forward(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor | None,
    points: Tensor,
    weights: Tensor,
) -> Tensor:
    sizes = _check(value, spatial_shapes, reference_points, points, weights)
    batch, _, heads, channels, queries = sizes[:5]
    value, points, weights = value.contiguous(), points.contiguous(), weights.contiguous()
    if reference_points is not None:
        reference_points = reference_points.contiguous()
    output = value.new_empty(batch, queries, heads * channels)
    extension.native().ms_deform_attn_forward(
        extension.place(value),
        sizes,
        spatial_shapes,
        extension.DTYPE_CODES[value.dtype],
        extension.DTYPE_CODES[weights.dtype],
        [_address(x) for x in (value, reference_points, points, weights, output)],
    )
    return output


def _backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor | None,
    points: Tensor,
    weights: Tensor,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sizes = _check(value, spatial_shapes, reference_points, points, weights)
    batch, _, heads, channels, queries = sizes[:5]
    _check_like("grad_output", grad_output, (batch, queries, heads * channels), value)
    inputs = [
        None if x is None else x.contiguous()
        for x in (value, reference_points, points, weights, grad_output)
    ]
    gradients = _new_gradients(value, reference_points, points, weights, wanted)
    targets = list(gradients)
    deterministic = torch.are_deterministic_algorithms_enabled()
    workspace = None
    if value.is_cuda and wanted[0]:
        workspace = _cuda_workspace(value, deterministic)
    if value.is_cuda and reference_points is not None and wanted[1]:
        # Heads share a reference point; each CUDA block knows some heads only.
        targets[1] = points.new_empty(batch, queries, heads, *reference_points.shape[2:])
    extension.native().ms_deform_attn_backward(
        extension.place(value),
        sizes,
        spatial_shapes,
        extension.DTYPE_CODES[value.dtype],
        extension.DTYPE_CODES[weights.dtype],
        [_address(x) for x in (*inputs, *targets, workspace)],
        deterministic,
    )
    if targets[1] is not gradients[1]:
        torch.sum(targets[1], dim=2, out=gradients[1])
    return gradients


def _cuda_workspace(value: Tensor, deterministic: bool) -> Tensor | None:
    """Where CUDA blocks add up the gradient of the value; None: in its own memory.

    16-bit storage is too coarse to add in. Sums of floats depend on their order, sums of integers
    do not: the deterministic mode adds 64-bit fixed-point numbers, whose unit the last two give.
    """
    if deterministic:
        return value.new_zeros(value.numel() + 2, dtype=torch.int64)
    if value.dtype in (torch.bfloat16, torch.float16):
        return value.new_zeros(value.shape, dtype=torch.float32)
    return None


def _new_gradients(
    value: Tensor,
    reference_points: Tensor | None,
    points: Tensor,
    weights: Tensor,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = (value, reference_points, points, weights)
    value_gradient, *others = (
        value.new_empty(0)
        if x is None or not want
        else torch.empty_like(x, memory_format=torch.contiguous_format)
        for x, want in zip(inputs, wanted, strict=True)
    )
    return value_gradient, *others


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()  # 0 also for a tensor without elements


def _check(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor | None,
    points: Tensor,
    weights: Tensor,
) -> tuple[int, int, int, int, int, int, int]:
    """Refuse what the kernels cannot take. -> B, S, H, C, Q, P, size of a reference point"""
    if value.ndim != 4 or value.dtype not in extension.DTYPE_CODES:
        raise ValueError(
            "ms_deform_attn: value must be (B, S, H, C) in fp32, bf16, fp16 or fp64, "
            f"got {tuple(value.shape)} in {value.dtype}"
        )
    batch, pixels, heads, channels = value.shape
    if len(spatial_shapes) % 2 != 0:
        raise ValueError(
            f"ms_deform_attn: spatial shapes must be pairs (height, width), got {spatial_shapes}"
        )
    levels = len(spatial_shapes) // 2
    areas = [h * w for h, w in zip(spatial_shapes[::2], spatial_shapes[1::2], strict=True)]
    if sum(areas) != pixels:
        raise ValueError(
            f"ms_deform_attn: value has {pixels} pixels, but levels {list(spatial_shapes)} "
            f"(height, width, ...) have {sum(areas)}"
        )
    if points.ndim != 6:
        raise ValueError(
            "ms_deform_attn: locations or offsets must be (B, Q, H, L, P, 2), "
            f"got {tuple(points.shape)}"
        )
    queries, per_level = points.shape[1], points.shape[4]
    dtype = arithmetic_dtype(value.dtype)
    shape = (batch, queries, heads, levels, per_level)
    _check_like("locations or offsets", points, (*shape, 2), value, dtype)
    weights_dtype = value.dtype if weights.dtype == value.dtype else dtype
    _check_like("weights or logits", weights, shape, value, weights_dtype)
    size = 0
    if reference_points is not None:
        size = 4 if reference_points.ndim == 4 and reference_points.shape[3] == 4 else 2
        _check_like(
            "reference points", reference_points, (batch, queries, levels, size), value, dtype
        )
    return batch, pixels, heads, channels, queries, per_level, size


def _check_like(
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    value: Tensor,
    dtype: torch.dtype | None = None,
) -> None:
    dtype = dtype or value.dtype
    if tensor.shape != shape or tensor.dtype != dtype or tensor.device != value.device:
        raise ValueError(
            f"ms_deform_attn: {name} must be {shape} in {dtype} on {value.device}, got "
            f"{tuple(tensor.shape)} in {tensor.dtype} on {tensor.device}"
        )


def _fake_forward(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor | None,
    points: Tensor,
    weights: Tensor,
) -> Tensor:
    batch, _, heads, channels, queries, _, _ = _check(
        value, spatial_shapes, reference_points, points, weights
    )
    return value.new_empty(batch, queries, heads * channels)


def _fake_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor | None,
    points: Tensor,
    weights: Tensor,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sizes = _check(value, spatial_shapes, reference_points, points, weights)
    batch, _, heads, channels, queries = sizes[:5]
    _check_like("grad_output", grad_output, (batch, queries, heads * channels), value)
    return _new_gradients(value, reference_points, points, weights, wanted)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.spatial_shapes, reference_points, points, weights = inputs
    ctx.save_for_backward(value, reference_points, points, weights)


def _differentiate(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    wanted = [needs[0], needs[2], needs[3], needs[4]]
    value, reference_points, points, weights = ctx.saved_tensors
    gradients = _backward_operator(
        grad_output, value, ctx.spatial_shapes, reference_points, points, weights, wanted
    )
    value, reference_points, points, weights = (
        gradient if want else None for gradient, want in zip(gradients, wanted, strict=True)
    )
    return value, None, reference_points, points, weights


def _refuse_second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError(
        "ms_deform_attn has no second derivative; ms_deform_attn_reference has one"
    )


def _autocast(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor | None,
    points: Tensor,
    weights: Tensor,
) -> Tensor:
    value, weights = autocast_values(value, weights)
    dtype = arithmetic_dtype(value.dtype)
    with torch.autocast(value.device.type, enabled=False):
        points = points.to(dtype)
        if reference_points is not None:
            reference_points = reference_points.to(dtype)
        return _operator(value, spatial_shapes, reference_points, points, weights)


def autocast_values(value: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Value and weights in the autocast dtype; unchanged without autocast and in fp64.

    Positions stay out of it: in bf16 a location is wrong by up to a third of a pixel.
    """
    kind = value.device.type
    if not torch.is_autocast_enabled(kind) or value.dtype == torch.float64:
        return value, weights
    dtype = torch.get_autocast_dtype(kind)
    return value.to(dtype), weights.to(dtype)


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("ms_deform_attn", _forward, _device)
    _LIBRARY.impl("ms_deform_attn_backward", _backward, _device)
    _LIBRARY.impl("ms_deform_attn", _autocast, f"Autocast{_device}")
torch.library.register_fake("predet::ms_deform_attn", _fake_forward, lib=_LIBRARY)
torch.library.register_fake("predet::ms_deform_attn_backward", _fake_backward, lib=_LIBRARY)
torch.library.register_autograd(
    "predet::ms_deform_attn", _differentiate, setup_context=_save_for_backward, lib=_LIBRARY
)
torch.library.register_autograd(
    "predet::ms_deform_attn_backward", _refuse_second_derivative, lib=_LIBRARY
)
