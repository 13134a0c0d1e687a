"""The native multi-scale deformable attention: against its definition, the reference and misuse.

Every test of arithmetic runs for each instruction set that this processor has, and again on a GPU
where there is one.
"""

from __future__ import annotations

import multiprocessing
import threading

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from predet.ops import extension
from predet.ops.ms_deform_attn import (
    ms_deform_attn,
    ms_deform_attn_fused,
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
)

pytestmark = pytest.mark.skipif(not extension.available(), reason="predet._C is not built")

SHAPES = [(5, 7), (3, 2), (1, 1)]  # odd, not square, one pixel
FLAT = [size for shape in SHAPES for size in shape]
PIXELS = sum(height * width for height, width in SHAPES)

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
NATIVE = extension.native() if extension.available() else None
TARGETS = [
    *(("cpu", name) for name in (NATIVE.instruction_sets() if NATIVE else ())),
    pytest.param(("cuda", ""), marks=[pytest.mark.cuda, needs_cuda]),
]


@pytest.fixture(params=TARGETS, ids=lambda target: "-".join(filter(None, target)))
def device(request):
    """A device, with each way that the kernels are compiled for it."""
    name, instruction_set = request.param
    before = NATIVE.instruction_set()
    NATIVE.use_instruction_set(instruction_set or before)
    yield name
    NATIVE.use_instruction_set(before)


def problem(
    *,
    corners: int = 2,
    channels: int = 5,
    points: int = 4,
    queries: int = 6,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Two images, three heads, points inside and outside; no point within 0.05 of a pixel's centre.

    Between centres the operator is smooth, so that its gradient is defined. `corners` 0: classic.
    """
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    size = torch.tensor([(w, h) for h, w in SHAPES], dtype=torch.float64)[:, None]  # (L, 1, 2)
    shape = (2, queries, 3, len(SHAPES), points)
    at = (rand(*shape, 2) * (size + 3) - 2).floor() + 0.5  # of a pixel's left border, or outside
    at = at + 0.05 + 0.9 * rand(*shape, 2)
    made = {"value": rand(2, PIXELS, 3, channels) - 0.5}
    if corners == 0:
        made |= {"locations": at / size, "weights": rand(*shape) - 0.3}
    else:
        reference = rand(2, queries, len(SHAPES), corners) * 0.8 + 0.2
        anchor = reference[:, :, None, :, None]
        unit = size if corners == 2 else size * anchor[..., 2:] * 0.5 / points
        made |= {
            "reference_points": reference,
            "offsets": (at - anchor[..., :2] * size) / unit,
            "logits": 4 * (rand(*shape) - 0.5),
        }
        if corners == 2:
            made["offsets"] = at - anchor[..., :2] * size
    for name, tensor in made.items():
        stored = name in ("value", "weights", "logits") or dtype == torch.float64
        made[name] = tensor.to(device, dtype if stored else torch.float32)
    return made


def native(p: dict[str, Tensor]) -> Tensor:
    value, *rest = p.values()
    if "locations" in p:
        return ms_deform_attn(value, SHAPES, *rest)
    return ms_deform_attn_fused(value, SHAPES, *rest)


def reference(p: dict[str, Tensor]) -> Tensor:
    value, *rest = p.values()
    if "locations" in p:
        return ms_deform_attn_reference(value, SHAPES, *rest)
    return ms_deform_attn_fused_reference(value, SHAPES, *rest)


def definition(p: dict[str, Tensor]) -> Tensor:
    """Every pixel of a level counts by how near it is to the point, over both axes. No sampler."""
    p = {name: tensor.detach().cpu().double() for name, tensor in p.items()}
    weights = p.get("weights")
    if weights is None:
        weights = p["logits"].flatten(3).softmax(-1).view_as(p["logits"])
    output, start = 0, 0
    for level, (height, width) in enumerate(SHAPES):
        maps = p["value"][:, start : start + height * width].unflatten(1, (height, width))
        start += height * width
        size = torch.tensor([width, height])
        if "locations" in p:
            at = p["locations"][:, :, :, level] * size
        else:
            anchor = p["reference_points"][:, :, None, level, None]
            offsets = p["offsets"][:, :, :, level]
            if anchor.shape[-1] == 4:
                offsets = offsets / offsets.shape[-2] * anchor[..., 2:] / 2 * size
            at = anchor[..., :2] * size + offsets
        near = [
            (1 - (at[..., axis, None] - 0.5 - torch.arange(count)).abs()).clamp(min=0)
            for axis, count in enumerate((width, height))
        ]  # (B, Q, H, P, width), (B, Q, H, P, height)
        output = output + torch.einsum(
            "bqhp,bqhpx,bqhpy,byxhc->bqhc", weights[:, :, :, level], *near, maps
        )
    return output.flatten(2)


def gradients(function, p: dict[str, Tensor], grad_output: Tensor) -> dict[str, Tensor]:
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in p.items()}
    output = function(leaves)
    found = torch.autograd.grad(output, list(leaves.values()), grad_output.to(output))
    return {"output": output.detach(), **dict(zip(leaves, found, strict=True))}


@pytest.mark.parametrize("corners", [0, 2, 4])
@pytest.mark.parametrize(
    ("channels", "points"), [(1, 1), (4, 4), (8, 2), (32, 4), (45, 3), (16, 9)]
)
def test_equals_the_definition(device, corners, channels, points):
    p = problem(corners=corners, channels=channels, points=points, device=device)
    torch.testing.assert_close(native(p).cpu(), definition(p), rtol=0, atol=1e-14)
    single = problem(
        corners=corners, channels=channels, points=points, dtype=torch.float32, device=device
    )
    torch.testing.assert_close(native(single).cpu().double(), definition(single), rtol=0, atol=2e-6)


@pytest.mark.parametrize("corners", [0, 2, 4])
@pytest.mark.parametrize(("channels", "points"), [(5, 4), (32, 4), (61, 7)])
def test_gradients_equal_those_of_the_reference(device, corners, channels, points):
    p = problem(corners=corners, channels=channels, points=points, device=device)
    grad_output = torch.randn_like(reference(p))
    expected = gradients(reference, p, grad_output)
    for name, found in gradients(native, p, grad_output).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("corners", [0, 2, 4])
def test_gradcheck(corners):
    p = problem(corners=corners, channels=3, points=2, queries=2)
    names = list(p)

    def function(*tensors: Tensor) -> Tensor:
        return native(dict(zip(names, tensors, strict=True)))

    leaves = tuple(tensor[:1].requires_grad_() for tensor in p.values())
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("corners", [0, 2, 4])
def test_error_is_at_most_twice_that_of_the_reference(device, corners, dtype):
    p = problem(corners=corners, channels=32, queries=300, dtype=dtype, device=device)
    grad_output = torch.randn_like(native(p))
    exact = gradients(
        reference, {name: tensor.double() for name, tensor in p.items()}, grad_output.double()
    )
    plain = gradients(reference, p, grad_output)
    for name, found in gradients(native, p, grad_output).items():
        error = (found.double() - exact[name]).norm()
        assert error <= 2 * (plain[name].double() - exact[name]).norm(), name
        assert found.dtype == plain[name].dtype


def half_a_pixel(p):
    return {**p, "offsets": p["offsets"] + 0.5}


def swapped_axes(p):
    flipped = {name: p[name].flip(-1) for name in ("reference_points", "offsets")}
    return {**p, **flipped}


def levels_reversed(p):
    return {**p, "logits": p["logits"].flip(3)}


def heads_rolled(p):
    return {**p, "value": p["value"].roll(1, dims=2)}


@pytest.mark.parametrize("spoil", [half_a_pixel, swapped_axes, levels_reversed, heads_rolled])
def test_a_wrong_operator_would_be_seen(spoil):
    p = problem()
    assert (native(spoil(p)) - definition(p)).abs().max() > 0.02  # tolerance above: 1e-14


@pytest.mark.parametrize("corners", [0, 2])
@pytest.mark.parametrize(("batch", "queries"), [(0, 6), (2, 0)])
def test_nothing_to_do(device, corners, batch, queries):
    p = {name: tensor[:batch] for name, tensor in problem(corners=corners, device=device).items()}
    p = {name: tensor if name == "value" else tensor[:, :queries] for name, tensor in p.items()}
    found = gradients(native, p, torch.ones(batch, queries, 15, device=device))
    assert found["output"].shape == (batch, queries, 15)
    for name, tensor in p.items():
        assert found[name].shape == tensor.shape
        assert not found[name].any()


def test_only_wanted_gradients_are_computed(device):
    p = problem(corners=4, device=device)
    for name in p:
        leaves = {k: v.clone().requires_grad_(k == name) for k, v in p.items()}
        native(leaves).square().sum().backward()
        expected = {k: v.clone().requires_grad_() for k, v in p.items()}
        reference(expected).square().sum().backward()
        assert all(leaves[k].grad is None for k in p if k != name)
        torch.testing.assert_close(leaves[name].grad, expected[name].grad, rtol=1e-9, atol=1e-12)


def test_inputs_need_not_be_contiguous(device):
    p = problem(corners=4, device=device)
    strided = {name: t.transpose(0, 1).contiguous().transpose(0, 1) for name, t in p.items()}
    assert not any(tensor.is_contiguous() for tensor in strided.values())
    grad_output = torch.randn(15, 6, 2, dtype=torch.float64, device=device).permute(2, 1, 0)
    expected = gradients(native, p, grad_output.contiguous())
    for name, found in gradients(native, strided, grad_output).items():
        torch.testing.assert_close(found, expected[name], rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("queries", [2, 400], ids=["in place", "packed"])
def test_any_number_of_threads_gives_the_same_bits(device, dtype, queries):
    if device == "cuda":
        pytest.skip("threads are the CPU's")
    p = problem(corners=4, channels=32, queries=queries, dtype=dtype)
    grad_output = torch.randn_like(native(p))
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 3, 5, 16):
            torch.set_num_threads(threads)
            runs.append(gradients(native, p, grad_output))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(run[name], runs[0][name]) for name in run)


@pytest.mark.cuda
@needs_cuda
def test_deterministic_mode_of_cuda():
    p = problem(corners=4, channels=32, queries=400, dtype=torch.float32, device="cuda")
    grad_output = torch.randn_like(native(p))
    expected = gradients(reference, p, grad_output)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (gradients(native, p, grad_output) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    for name, found in first.items():
        assert torch.equal(found, second[name])
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-5)


def test_points_that_are_not_numbers_lie_outside(device):
    p = problem(dtype=torch.float32, device=device)
    nowhere = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38], device=device)
    spoiled, outside = p["offsets"].clone(), p["offsets"].clone()
    spoiled[0, 0, :, :, :, 0] = nowhere
    spoiled[0, 1, :, :, :, 1] = nowhere
    outside[0, 0, :, :, :, 0] = outside[0, 1, :, :, :, 1] = 100.0
    grad_output = torch.ones(2, 6, 15, device=device)
    found = gradients(native, {**p, "offsets": spoiled}, grad_output)
    expected = gradients(native, {**p, "offsets": outside}, grad_output)
    for name in ("output", "value", "offsets", "logits"):
        assert torch.equal(found[name], expected[name]), name


def test_softmax_of_extreme_logits(device):
    p = problem(dtype=torch.float32, device=device)
    logits = p["logits"]
    logits[0, 0] *= 1e4
    logits[0, 1, :, 0, 0] = -float("inf")
    logits[0, 2] = -3e38
    torch.testing.assert_close(native(p), reference(p), rtol=1e-5, atol=1e-6)
    logits[1, 0, 0, 0, 0] = float("nan")
    broken = native(p).isnan().unflatten(2, (3, 5))
    assert broken[1, 0, 0].all()
    assert broken.sum() == 5  # this head of this query only


def pixel_wave(width: int) -> Tensor:
    """(1, width, 1, 1), +1 and -1 in turn: a point off by d pixels is off by 2 d in its sample."""
    return (1 - 2 * (torch.arange(width) % 2)).view(1, width, 1, 1).float()


def test_autocast_keeps_positions(device):
    width, queries = 250, 200
    generator = torch.Generator().manual_seed(0)
    reference_points = torch.rand(1, queries, 1, 2, generator=generator).to(device)
    reference_points[..., 1] = 0.5
    offsets = torch.zeros(1, queries, 1, 1, 1, 2, device=device)
    offsets[..., 0] = torch.rand(1, queries, 1, 1, 1, generator=generator).to(device) * 8 - 4
    logits = torch.zeros(1, queries, 1, 1, 1, device=device)
    value = pixel_wave(width).to(device)

    def sample(reference_points: Tensor) -> Tensor:
        return ms_deform_attn_fused(value, [(1, width)], reference_points, offsets, logits)

    exact = sample(reference_points)
    with torch.autocast(device, torch.bfloat16):
        low = sample(reference_points)
        rounded = sample(reference_points.bfloat16())
    assert low.dtype == torch.bfloat16
    assert (low - exact).abs().max() < 2**-8  # rounding of the result, nothing else
    assert (rounded - exact).abs().max() > 0.5  # what a cast of the positions would have done


def test_autocast_casts_values_and_logits_only():
    p = problem(dtype=torch.float32)
    leaves = {name: tensor.requires_grad_() for name, tensor in p.items()}
    low = {**p, "value": p["value"].bfloat16(), "logits": p["logits"].bfloat16()}
    expected = native(low)
    with torch.autocast("cpu", torch.bfloat16):
        through_function = native(leaves)
        arguments = list(leaves.values())
        through_operator = torch.ops.predet.ms_deform_attn(arguments[0], FLAT, *arguments[1:])
    assert torch.equal(through_function, expected)
    assert torch.equal(through_operator, expected)
    through_function.float().sum().backward()
    assert {tensor.grad.dtype for tensor in leaves.values()} == {torch.float32}


@pytest.mark.parametrize("corners", [0, 2, 4])
def test_opcheck(corners):
    value, *rest = problem(corners=corners, dtype=torch.float32).values()
    rest = [None, *rest] if corners == 0 else rest
    leaves = [None if x is None else x.requires_grad_() for x in (value, *rest)]
    torch.library.opcheck(torch.ops.predet.ms_deform_attn.default, (leaves[0], FLAT, *leaves[1:]))
    plain = [None if x is None else x.detach() for x in leaves]
    torch.library.opcheck(
        torch.ops.predet.ms_deform_attn_backward.default,
        (torch.ones(2, 6, 15), plain[0], FLAT, *plain[1:], [True, corners > 0, True, True]),
    )


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_into_one_graph(backend):
    p = problem(dtype=torch.float32)
    grad_output = torch.randn(2, 6, 15)

    def block(p: dict[str, Tensor]) -> Tensor:
        return native({**p, "value": p["value"] * 2}).relu() + 1

    compiled = torch.compile(block, fullgraph=True, backend=backend)
    expected = gradients(block, p, grad_output)
    for name, found in gradients(compiled, p, grad_output).items():
        torch.testing.assert_close(found, expected[name], msg=name)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(p), block(p))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(use_reentrant):
    p = problem()
    grad_output = torch.randn(2, 6, 15, dtype=torch.float64)

    def stored(p: dict[str, Tensor]) -> Tensor:
        names = list(p)
        return checkpoint(
            lambda *tensors: native(dict(zip(names, tensors, strict=True))),
            *p.values(),
            use_reentrant=use_reentrant,
        )

    leaves = {name: tensor.clone().requires_grad_() for name, tensor in p.items()}
    stored(leaves).backward(grad_output)
    expected = gradients(native, p, grad_output)
    assert all(torch.equal(leaves[name].grad, expected[name]) for name in p)


class Attention(torch.nn.Module):
    """As small as a layer around the operator can be."""

    def __init__(self) -> None:
        super().__init__()
        self.value = torch.nn.Linear(15, 15)
        self.logits = torch.nn.Linear(15, 3 * 3 * 4)

    def forward(self, memory: Tensor, p: dict[str, Tensor]) -> Tensor:
        value = self.value(memory).unflatten(2, (3, 5))
        logits = self.logits(memory[:, :6]).view_as(p["logits"])
        return native({**p, "value": value, "logits": logits})


def test_data_parallel(tmp_path):
    torch.manual_seed(0)
    model, p, memory = Attention(), problem(dtype=torch.float32), torch.randn(2, PIXELS, 15)
    model(memory, p).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        parallel(memory, p).square().sum().backward()
    finally:
        dist.destroy_process_group()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_there_is_no_second_derivative():
    p = {name: tensor.requires_grad_() for name, tensor in problem().items()}
    (gradient,) = torch.autograd.grad(native(p).square().sum(), p["offsets"], create_graph=True)
    with pytest.raises(NotImplementedError, match="ms_deform_attn_reference has one"):
        gradient.sum().backward()


def in_a_forked_child(
    p: dict[str, Tensor], grad_output: Tensor, expected: dict[str, Tensor]
) -> None:
    # Nothing large of torch's own runs on two threads here: OpenMP does not survive a fork.
    torch.set_num_threads(2)
    found = gradients(native, p, grad_output)
    torch.set_num_threads(1)
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_threads_survive_a_fork():
    """As data loader workers are forked: the parent's threads do not exist in the child."""
    p = problem(channels=32, queries=300, dtype=torch.float32)
    grad_output = torch.ones(2, 300, 96)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = gradients(native, p, grad_output)
        torch.set_num_threads(1)
        child = multiprocessing.get_context("fork").Process(
            target=in_a_forked_child, args=(p, grad_output, expected)
        )
        child.start()
        child.join(timeout=60)
        alive = child.is_alive()
        child.kill()
        torch.set_num_threads(2)
        with torch.no_grad():
            native(p)
    finally:
        torch.set_num_threads(before)
    assert not alive, "the child waits for threads of its parent"
    assert child.exitcode == 0


def test_calls_from_several_threads_at_once():
    p = problem(channels=32, queries=500, dtype=torch.float32)
    grad_output = torch.randn(2, 500, 96)
    expected = gradients(native, p, grad_output)
    wrong = []

    def work() -> None:
        torch.set_num_threads(2)
        for _ in range(10):
            found = gradients(native, p, grad_output)
            wrong.extend(name for name in found if not torch.equal(found[name], expected[name]))

    before = torch.get_num_threads()
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.set_num_threads(before)
    assert not wrong


def test_the_fallback_gives_the_same(monkeypatch):
    p = problem(dtype=torch.bfloat16)
    expected = native(p)
    monkeypatch.setattr(extension, "supports", lambda *_: False)
    with torch.autocast("cpu", torch.bfloat16):
        found = native({name: tensor.float() for name, tensor in p.items()})
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)


HOSTILE = [
    ({"value": torch.zeros(2, 41, 3, 5)}, "41 pixels, but levels"),
    ({"value": torch.zeros(2, 42, 15)}, r"value must be \(B, S, H, C\)"),
    ({"value": torch.zeros(2, 42, 3, 5, dtype=torch.int32)}, "torch.int32"),
    ({"value": torch.zeros(2, 42, 3, 5, dtype=torch.complex64)}, "torch.complex64"),
    ({"points": torch.zeros(2, 6, 3, 2, 4, 2)}, r"got \(2, 6, 3, 2, 4, 2\)"),
    ({"points": torch.zeros(2, 6, 3, 3, 4, 3)}, r"got \(2, 6, 3, 3, 4, 3\)"),
    ({"points": torch.zeros(2, 6, 3, 3, 8)}, r"got \(2, 6, 3, 3, 8\)"),
    ({"points": torch.zeros(3, 6, 3, 3, 4, 2)}, r"got \(3, 6, 3, 3, 4, 2\)"),
    ({"points": torch.zeros(2, 6, 3, 3, 4, 2, dtype=torch.bfloat16)}, "torch.bfloat16"),
    ({"points": torch.zeros(2, 6, 3, 3, 4, 2, device="meta")}, "on meta"),
    ({"weights": torch.zeros(2, 6, 3, 3, 5)}, r"got \(2, 6, 3, 3, 5\)"),
    ({"weights": torch.zeros(2, 6, 3, 3, 4, dtype=torch.float64)}, "torch.float64"),
    ({"weights": torch.zeros(2, 6, 3, 12)}, r"got \(2, 6, 3, 12\)"),
    ({"reference_points": torch.zeros(2, 6, 3, 3)}, r"got \(2, 6, 3, 3\)"),
    ({"reference_points": torch.zeros(2, 1, 3, 2)}, r"got \(2, 1, 3, 2\)"),
    ({"reference_points": torch.zeros(2, 6, 3, 2, dtype=torch.float64)}, "torch.float64"),
    ({"spatial_shapes": [5, 7, 3, 2, 1]}, "pairs"),
    ({"spatial_shapes": [-5, -7, 3, 2, 1, 1]}, "must be positive"),
    ({"spatial_shapes": [7, 6, 0, 2, 1, 0]}, "must be positive"),
    ({"spatial_shapes": [2**32, 2**32, 3, 2, 36, 1]}, "pixels"),
    ({"spatial_shapes": [5, 7, 7, 1]}, r"got \(2, 6, 3, 3, 4, 2\)"),
    ({"spatial_shapes": []}, "42 pixels"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE)
def test_the_operator_refuses_what_does_not_fit(change, message):
    """Called directly, with nothing of predet.ops in between."""
    value, reference_points, offsets, logits = problem(dtype=torch.float32).values()
    arguments = {
        "value": value,
        "spatial_shapes": FLAT,
        "reference_points": reference_points,
        "points": offsets,
        "weights": logits,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        torch.ops.predet.ms_deform_attn(**arguments)
    with pytest.raises(ValueError, match=message):
        torch.ops.predet.ms_deform_attn_backward(
            torch.zeros(2, 6, 15), **arguments, wanted=[True] * 4
        )


@pytest.mark.parametrize(
    "grad_output",
    [torch.zeros(2, 6, 14), torch.zeros(2, 6, 15).double(), torch.zeros(2, 6, 15, device="meta")],
)
def test_backward_refuses_a_gradient_that_does_not_fit(grad_output):
    value, *rest = problem(dtype=torch.float32).values()
    with pytest.raises(ValueError, match="grad_output"):
        torch.ops.predet.ms_deform_attn_backward(grad_output, value, FLAT, *rest, [True] * 4)


SIZES = (2, 42, 3, 5, 6, 4, 2)  # B, S, H, C, Q, P, numbers of a reference point


@pytest.mark.parametrize(
    ("place", "sizes", "shapes", "dtypes", "addresses"),
    [
        ((-1, 0, 1), SIZES, FLAT, (0, 0), [0] * 5),  # no memory
        ((-1, 0, 1), SIZES, FLAT, (0, 0), [0] * 4),
        ((-1, 0, 0), SIZES, FLAT, (0, 0), [64] * 5),  # no threads
        ((-2, 0, 1), SIZES, FLAT, (0, 0), [64] * 5),  # no such device
        ((-1, 0, 1), SIZES, FLAT, (4, 0), [64] * 5),  # no such dtype
        ((-1, 0, 1), SIZES, FLAT, (-1, 0), [64] * 5),
        ((-1, 0, 1), SIZES, FLAT, (0, 3), [64] * 5),  # fp64 weights of an fp32 value
        ((-1, 0, 1), SIZES, FLAT[:-1], (0, 0), [64] * 5),
        ((-1, 0, 1), SIZES, [*FLAT[:-1], 2], (0, 0), [64] * 5),
        ((-1, 0, 1), SIZES, [-5, -7, 3, 2, 1, 1], (0, 0), [64] * 5),
        ((-1, 0, 1), (2, 42, 3, 5, 6, 4, 3), FLAT, (0, 0), [64] * 5),
        ((-1, 0, 1), (-2, 42, 3, 5, 6, 4, 2), FLAT, (0, 0), [64] * 5),
        ((-1, 0, 1), (2**40, 42, 2**40, 5, 6, 4, 2), FLAT, (0, 0), [64] * 5),
        ((-1, 0, 1), (2, 42, 3, 5, 2**62, 4, 2), FLAT, (0, 0), [64] * 5),
        ((-1, 0, 1), (2, 42, 1, 2**40, 6, 4, 2), FLAT, (0, 0), [64] * 5),
        ((-1, 0, 1), (1, 2**32, 1, 1, 6, 4, 2), [2**16, 2**16], (0, 0), [64] * 5),
        ((-1, 0, 1), (1, 2**64 // 4, 1, 1, 6, 4, 2), [2**31, 2**31], (0, 0), [64] * 5),
    ],
)
def test_the_binding_refuses_nonsense(place, sizes, shapes, dtypes, addresses):
    with pytest.raises(ValueError, match=r"\w"):
        NATIVE.ms_deform_attn_forward(place, sizes, shapes, *dtypes, addresses)
    with pytest.raises(ValueError, match=r"\w"):
        NATIVE.ms_deform_attn_backward(place, sizes, shapes, *dtypes, addresses * 2, False)


@pytest.mark.parametrize("arguments", [(), (None,) * 6, ("x",) * 6, ((-1, 0, 1), SIZES)])
def test_the_binding_refuses_other_types(arguments):
    with pytest.raises(TypeError):
        NATIVE.ms_deform_attn_forward(*arguments)
