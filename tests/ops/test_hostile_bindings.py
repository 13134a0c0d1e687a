"""Whatever tensors and arrays are passed, native operators answer or raise: they never crash.

Sizes, strides, dtypes and numbers are drawn, mostly such that they nearly fit together. What an
operator accepts it has to answer as its reference does. `make sanitize` runs this on a build that
sees each read and write out of bounds.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from predet.ops import extension
from predet.ops.matching import linear_sum_assignment, match
from predet.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_reference

pytestmark = pytest.mark.skipif(not extension.available(), reason="predet._C is not built")

DTYPES = [torch.float32] * 6 + [torch.bfloat16, torch.float16, torch.float64, torch.int64]
REFUSALS = (ValueError, TypeError, NotImplementedError)
MANY = settings(
    max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
sizes = st.integers(0, 4)


@st.composite
def nearly(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape`, or now and then one with a size or the number of axes changed."""
    changed = list(shape)
    how = draw(st.sampled_from(["as it is"] * 12 + ["size", "fewer", "more"]))
    if how == "size":
        changed[draw(st.integers(0, len(shape) - 1))] = draw(sizes)
    elif how == "fewer":
        changed.pop()
    elif how == "more":
        changed.append(draw(sizes))
    return tuple(changed)


@st.composite
def tensors(
    draw: st.DrawFn, shape: tuple[int, ...], low: float = -3.0, high: float = 4.0
) -> Tensor:
    """Of nearly that shape, in any layout, at times with numbers that are none."""
    shape = draw(nearly(shape))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    layout = draw(st.sampled_from(["contiguous", "transposed", "sliced", "expanded"]))
    if layout == "expanded":
        made = torch.rand(1, generator=generator).expand(shape)
    elif layout == "sliced":
        made = torch.rand(*shape, 3, generator=generator)[..., 1]
    else:
        made = torch.rand(*shape, generator=generator)
    made = (made * (high - low) + low).to(draw(st.sampled_from(DTYPES)))
    if layout == "transposed" and made.ndim > 1:
        made = made.transpose(0, 1).contiguous().transpose(0, 1)
    if made.is_floating_point() and draw(st.integers(0, 5)) == 0:
        made = made.clone()
        bad = draw(st.sampled_from([float("nan"), float("inf"), -float("inf"), 6e4]))
        made.view(-1)[::7] = bad if made.is_contiguous() else 0
    return made


@MANY
@given(data=st.data())
def test_deformable_attention(data: st.DataObject) -> None:
    shapes = data.draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=3))
    pixels = sum(height * width for height, width in shapes)
    batch, heads, channels, queries, points = (data.draw(sizes) for _ in range(5))
    points_shape = (batch, queries, heads, len(shapes), points)
    value = data.draw(tensors((batch, pixels, heads, channels)))
    locations = data.draw(tensors((*points_shape, 2)))
    weights = data.draw(tensors(points_shape))
    for tensor in (value, locations, weights):
        if tensor.is_floating_point():
            tensor.requires_grad_()
    try:
        output = ms_deform_attn(value, shapes, locations, weights)
    except REFUSALS:
        return
    assert output.shape == (batch, queries, heads * channels)
    if output.requires_grad:
        output.float().sum().backward()
    inputs = [x.detach().double() for x in (value, locations, weights)]
    assume(all(x.isfinite().all() for x in inputs) and value.dtype == torch.float32)
    expected = ms_deform_attn_reference(inputs[0], shapes, *inputs[1:])
    torch.testing.assert_close(output.double(), expected, rtol=1e-3, atol=1e-3)


@MANY
@given(data=st.data())
def test_matching(data: st.DataObject) -> None:
    layers, images, queries, classes = (data.draw(sizes) for _ in range(4))
    counts = data.draw(st.lists(st.integers(-1, 5), min_size=images, max_size=images))
    total = max(0, sum(counts))
    low, high = data.draw(st.sampled_from([(0, max(0, classes - 1)), (-1, classes)]))
    target_classes = torch.randint(low, high + 1, (total,))
    if data.draw(st.integers(0, 9)) == 0:
        target_classes = target_classes.to(torch.int32)
    softmax = data.draw(st.booleans())
    try:
        found = match(
            data.draw(tensors((layers, images, queries, classes + softmax))),
            data.draw(tensors((layers, images, queries, 4), 0, 1)),
            target_classes,
            data.draw(tensors((total, 4), 0, 1)),
            counts,
            classification="softmax" if softmax else "focal",
            class_cost=1.0,
            bbox_cost=5.0,
            giou_cost=2.0,
            copies=data.draw(st.integers(0, 3)),
        )
    except REFUSALS:
        return
    chosen = found.query_of_target
    assert ((chosen >= -1) & (chosen < queries)).all()
    start = 0
    for count in (count * (chosen.shape[1] // max(total, 1)) for count in counts):
        for row in chosen[:, start : start + count]:
            taken = row[row >= 0]
            assert len(taken.unique()) == len(taken) == min(count, queries)
        start += count


@MANY
@given(data=st.data())
def test_assignment(data: st.DataObject) -> None:
    layers, queries = data.draw(sizes), data.draw(sizes)
    counts = data.draw(st.lists(st.integers(-1, 4), max_size=4))
    cost = data.draw(tensors((layers, max(0, sum(counts)), queries)))
    if data.draw(st.booleans()) and cost.dtype != torch.bfloat16:
        cost = cost.numpy()
    try:
        found = linear_sum_assignment(cost, counts)
    except REFUSALS:
        return
    assert len(found) == layers
    assert ((found >= -1) & (found < max(queries, 1))).all()


@MANY
@given(data=st.data())
def test_selective_search(data: st.DataObject) -> None:
    native = extension.native()
    height, width, channels = (data.draw(st.integers(0, 6)) for _ in range(3))

    def array(shape: tuple[int, ...], dtypes: list[type]) -> np.ndarray:
        shape = data.draw(nearly(shape))
        rng = np.random.default_rng(0)
        made = (255 * rng.random(shape)).astype(data.draw(st.sampled_from(dtypes)))
        made = made[::-1] if data.draw(st.booleans()) else made
        return np.asfortranarray(made) if data.draw(st.booleans()) else made

    values = array((height, width, channels), [np.uint8] * 5 + [np.float64, np.int8])
    smoothed = array((height, width, channels), [np.float32] * 5 + [np.float64, np.complex64])
    if smoothed.dtype == np.float32 and smoothed.size and data.draw(st.integers(0, 4)) == 0:
        smoothed = smoothed.copy()
        smoothed.flat[::3] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, 3e38, -1.0]))
    derivatives = array((channels, 4, height, width), [np.float32])
    with_texture = data.draw(st.booleans())
    k = data.draw(st.lists(st.floats(width=32), max_size=3))
    try:
        regions = native.selective_search_regions(
            values=values,
            smoothed=smoothed,
            derivatives=derivatives if with_texture else None,
            k=sorted(k),
            min_size=data.draw(st.integers(-1, 40)),
            with_color=data.draw(st.booleans()),
            fused=data.draw(st.booleans()),
            opencv_ties=data.draw(st.booleans()),
            threads=data.draw(st.integers(0, 3)),
        )
        strategy = data.draw(st.lists(st.booleans(), min_size=4, max_size=4))
        found = native.selective_search_boxes([[regions]], [strategy], data.draw(st.booleans()), 1)
    except (*REFUSALS, RuntimeError):  # what cannot be cast is a RuntimeError of pybind11
        return
    boxes = found[0][0]
    assert ((boxes >= 0) & (boxes <= [width, height] * 2)).all()
