"""The native matching: against scipy, the reference, the formulas in fp64, and misuse.

Every test of arithmetic runs for each instruction set that this processor has, and again on a GPU
where there is one. Costs may differ from device to device only in what the formulas leave open;
assignments of equal costs may not differ at all.
"""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from predet.ops import extension, matching
from predet.ops.matching import (
    BAD_COST,
    linear_sum_assignment,
    linear_sum_assignment_reference,
    match,
    match_reference,
    matching_cost,
)

pytestmark = pytest.mark.skipif(not extension.available(), reason="predet._C is not built")

NATIVE = extension.native() if extension.available() else None
INSTRUCTION_SETS = tuple(NATIVE.instruction_sets()) if NATIVE else ()
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
TARGETS = [
    *(("cpu", name) for name in INSTRUCTION_SETS),
    pytest.param(("cuda", ""), marks=[pytest.mark.cuda, needs_cuda]),
]
WEIGHTS = {"class_cost": 2.0, "bbox_cost": 5.0, "giou_cost": 2.0}
TOLERANCE = 1e-6  # of the sum of the absolute assigned costs


@pytest.fixture(params=TARGETS, ids=lambda target: "-".join(filter(None, target)))
def device(request):
    """A device, with each way that the loops are compiled for it."""
    name, instruction_set = request.param
    before = NATIVE.instruction_set()
    NATIVE.use_instruction_set(instruction_set or before)
    yield name
    NATIVE.use_instruction_set(before)


def blocks(counts):
    """(image, slice of its targets) of each image."""
    ends = np.cumsum(counts).tolist()
    return [(b, slice(end - n, end)) for b, (n, end) in enumerate(zip(counts, ends, strict=True))]


def assert_optimal(cost: Tensor, counts, query_of_target: Tensor) -> None:
    """Each block is assigned as often as it can be, no query twice, at scipy's cost.

    scipy solves the same numbers, promoted to fp64.
    """
    cost = cost.detach().cpu().double().numpy()
    found = query_of_target.cpu().numpy()
    assert found.shape == cost.shape[:2]
    for layer in range(len(cost)):
        for _, rows in blocks(counts):
            block, chosen = cost[layer, rows], found[layer, rows]
            taken = chosen >= 0
            assert taken.sum() == min(block.shape)
            assert len(set(chosen[taken].tolist())) == taken.sum()
            assert (chosen[~taken] == -1).all()
            assert (chosen < block.shape[1]).all()
            best = block[scipy.optimize.linear_sum_assignment(block)]
            difference = math.fsum(block[taken.nonzero()[0], chosen[taken]]) - math.fsum(best)
            assert abs(difference) <= TOLERANCE * np.abs(best).sum()


def tricky_costs(kind: str, rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    layers, targets, queries = shape
    normal = rng.standard_normal(shape)
    rows, columns = rng.random((layers, targets, 1)), rng.random((layers, 1, queries))
    return {
        "normal": normal,
        "positive": rng.random(shape),
        "tied": np.round(normal),
        "constant": np.full(shape, normal.flat[0] if normal.size else 0.0),
        "zero": np.zeros(shape) * -1.0,
        "huge": normal * 1e37,
        "denormal": normal * 1e-41,
        "all scales": normal * 10.0 ** rng.integers(-30, 30, shape),
        "rows and columns": rows + columns + 1e-6 * normal,  # nearly every assignment is as good
        "product": rows * columns,  # long augmenting paths
        "some bad": np.where(rng.random(shape) < 0.3, BAD_COST, normal),
    }[kind]


KINDS = (
    "normal",
    "positive",
    "tied",
    "constant",
    "zero",
    "huge",
    "denormal",
    "all scales",
    "rows and columns",
    "product",
    "some bad",
)


@settings(
    max_examples=800,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    kind=st.sampled_from(KINDS),
    counts=st.lists(st.integers(0, 24), min_size=1, max_size=4),
    queries=st.integers(0, 150),
    layers=st.integers(1, 2),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_assignment_is_optimal(device, kind, counts, queries, layers, dtype, seed):
    shape = (layers, sum(counts), queries)
    cost = torch.from_numpy(tricky_costs(kind, np.random.default_rng(seed), shape))
    cost = cost.to(device, dtype)
    assert_optimal(cost, counts, linear_sum_assignment(cost, counts))


@pytest.mark.parametrize("kind", KINDS)
def test_assignment_is_optimal_when_it_is_large(device, kind):
    """Several blocks of bounds, many rows in a tree, both ways round; also square."""
    rng = np.random.default_rng(7)
    for targets, queries in [(90, 700), (130, 70), (100, 100)]:
        cost = torch.from_numpy(tricky_costs(kind, rng, (1, targets, queries)).astype(np.float32))
        cost = cost.to(device)
        assert_optimal(cost, [targets], linear_sum_assignment(cost, [targets]))


def test_the_check_refuses_what_is_not_optimal():
    rng = np.random.default_rng(3)
    cost = torch.from_numpy(rng.standard_normal((1, 12, 40)).astype(np.float32))
    right = linear_sum_assignment(cost, [12])
    assert_optimal(cost, [12], right)
    swapped = right[:, [1, 0, *range(2, 12)]]
    repeated = torch.where(torch.arange(12) == 3, right[:, :1], right)
    left_out = torch.where(torch.arange(12) == 3, -1, right)
    worse = right.clone()
    worse[0, 0] = next(q for q in range(40) if q not in right[0])
    greedy = greedy_assignment(cost[0].numpy())
    for wrong in (swapped, repeated, left_out, worse, greedy):
        with pytest.raises(AssertionError):
            assert_optimal(cost, [12], wrong)


def greedy_assignment(cost: np.ndarray) -> Tensor:
    """What a solver without augmenting paths would give."""
    chosen, free = [], cost.copy()
    for row in free:
        chosen.append(int(row.argmin()))
        free[:, chosen[-1]] = np.inf
    return torch.tensor([chosen])


def test_a_hair_decides():
    """Costs that differ in the last bit of fp32 only, and duals that would lose it in fp32."""
    one, next_up = np.float32(1), np.nextafter(np.float32(1), np.float32(2))
    cost = torch.tensor([[[next_up, one, next_up], [one, next_up, next_up]]])
    assert linear_sum_assignment(cost, [2]).tolist() == [[1, 0]]
    large = np.float32(2**24)
    cost = torch.from_numpy(np.array([[[large, 0], [large - 1, 1]]], dtype=np.float32))
    assert_optimal(cost, [2], linear_sum_assignment(cost, [2]))
    assert linear_sum_assignment(cost + 0, [2]).tolist() in ([[0, 1]], [[1, 0]])


@pytest.mark.parametrize("kind", ["tied", "constant", "zero", "normal"])
def test_ties_are_broken_alike_everywhere(kind):
    rng = np.random.default_rng(5)
    counts = [7, 0, 40, 3, 90, 65]
    cost = torch.from_numpy(tricky_costs(kind, rng, (3, sum(counts), 70)).astype(np.float32))
    threads, found = torch.get_num_threads(), []
    before = NATIVE.instruction_set()
    try:
        for instruction_set in INSTRUCTION_SETS:
            NATIVE.use_instruction_set(instruction_set)
            for number in (1, 2, 5):
                torch.set_num_threads(number)
                found += [linear_sum_assignment(cost, counts) for _ in range(2)]
                found.append(linear_sum_assignment(cost.double(), counts))
    finally:
        NATIVE.use_instruction_set(before)
        torch.set_num_threads(threads)
    assert all(torch.equal(each, found[0]) for each in found)


def test_equal_costs_take_the_first_query(device):
    cost = torch.full((1, 4, 9), 2.5, device=device)
    assert linear_sum_assignment(cost, [3, 1]).tolist() == [[0, 1, 2, 0]]


def test_arrays_and_tensors_and_their_dtypes():
    cost = np.random.default_rng(0).integers(0, 50, (2, 5, 9))
    expected = linear_sum_assignment_reference(cost.astype(np.float64), [2, 3])
    assert_optimal(torch.from_numpy(cost), [2, 3], torch.from_numpy(expected))
    for dtype in (np.float64, np.float32, np.float16, np.int64, np.int16, np.uint8):
        found = linear_sum_assignment(cost.astype(dtype), [2, 3])
        assert isinstance(found, np.ndarray)
        assert_optimal(torch.from_numpy(cost), [2, 3], torch.from_numpy(found))
    fixed = cost.astype(np.float32)
    fixed.flags.writeable = False
    found = linear_sum_assignment(fixed, [2, 3])
    transposed = torch.from_numpy(cost).float().transpose(1, 2).contiguous().transpose(1, 2)
    np.testing.assert_array_equal(linear_sum_assignment(transposed, [2, 3]), found)
    wide = torch.zeros(2, 5, 30)
    wide[:, :, 10:19] = torch.from_numpy(cost)
    np.testing.assert_array_equal(linear_sum_assignment(wide[:, :, 10:19], [2, 3]), found)


@pytest.mark.parametrize(
    ("layers", "counts", "queries"),
    [(0, [2], 5), (2, [], 5), (2, [0, 0], 5), (1, [3, 0], 0), (1, [0], 0), (1, [1], 1)],
)
def test_nothing_to_assign(device, layers, counts, queries):
    cost = torch.zeros(layers, sum(counts), queries, device=device)
    found = linear_sum_assignment(cost, counts)
    assert found.shape == (layers, sum(counts))
    assert found.dtype == torch.int64
    assert (found == (-1 if queries == 0 else 0)).all()


def problem(
    *,
    layers: int = 2,
    counts: tuple[int, ...] = (3, 0, 8, 1),
    queries: int = 70,
    classes: int = 21,
    scale: float = 1.5,
    seed: int = 0,
    device: str = "cpu",
) -> dict:
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    shape, total = (layers, len(counts), queries), sum(counts)
    made = {
        "logits": scale * torch.randn(*shape, classes, generator=generator),
        "boxes": torch.cat([rand(*shape, 2), 0.05 + 0.5 * rand(*shape, 2)], dim=-1),
        "target_classes": torch.randint(classes, (total,), generator=generator),
        "target_boxes": torch.cat([rand(total, 2), 0.05 + 0.5 * rand(total, 2)], dim=-1),
    }
    return {**{name: x.to(device) for name, x in made.items()}, "counts": counts}


def exact_cost(p: dict, classification: str, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """(L, M, Q) in fp64, with nothing that cancels: the formulas of the papers."""
    image = torch.arange(len(p["counts"])).repeat_interleave(torch.tensor(p["counts"]))
    logits = p["logits"].double()[:, image]  # (L, M, Q, K)
    index = p["target_classes"][None, :, None, None].expand(*logits.shape[:3], 1)
    own = logits.gather(-1, index)[..., 0]
    if classification == "softmax":
        score = -(own - logits.logsumexp(-1)).exp()
    else:
        is_it, is_not = own.sigmoid(), (-own).sigmoid()
        score = alpha * is_not**gamma * -(is_it + 1e-8).log()
        score = score - (1 - alpha) * is_it**gamma * -(is_not + 1e-8).log()
    a, b = p["boxes"].double()[:, image], p["target_boxes"].double()[None, :, None]
    low = torch.maximum(a[..., :2] - a[..., 2:] / 2, b[..., :2] - b[..., 2:] / 2)
    high = torch.minimum(a[..., :2] + a[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
    hull_low = torch.minimum(a[..., :2] - a[..., 2:] / 2, b[..., :2] - b[..., 2:] / 2)
    hull_high = torch.maximum(a[..., :2] + a[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
    overlap = (high - low).clamp(min=0).prod(-1)
    union = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - overlap
    hull = (hull_high - hull_low).prod(-1)
    giou = overlap / union - (hull - union) / hull
    return 2 * score + 5 * (a - b).abs().sum(-1) - 2 * giou


def native_cost(p: dict, classification: str, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """The costs that the native matching solves, by the binding that exists for this test."""
    layers, _, queries, _ = p["logits"].shape
    cost = torch.empty(layers, sum(p["counts"]), queries)
    bad = torch.empty(layers, len(p["counts"]), dtype=torch.int64)
    tensors = [p[n] for n in ("logits", "boxes", "target_classes", "target_boxes")] + [cost, bad]
    NATIVE.hungarian_costs(
        (*p["logits"].shape, 1),
        p["counts"],
        extension.DTYPE_CODES[p["logits"].dtype],
        (*p["logits"].stride()[:3], *p["boxes"].stride()[:3]),
        (2.0, 5.0, 2.0, alpha, gamma),
        classification == "softmax",
        [x.data_ptr() for x in tensors] + [0],
    )
    return cost


@pytest.mark.parametrize("scale", [0.5, 3.0, 12.0])
@pytest.mark.parametrize(
    ("classification", "gamma"), [("softmax", 2.0), ("focal", 2.0), ("focal", 1.5), ("focal", 0.0)]
)
def test_costs_are_as_exact_as_the_reference(device, classification, gamma, scale):
    """Error against fp64 at most twice the reference's own, or the rounding of the sum."""
    if device == "cuda":
        pytest.skip("costs never leave the device; the assignments of both are compared")
    for classes, queries in [(1, 5), (16, 64), (21, 70), (92, 130)]:
        p = problem(classes=classes, queries=queries, scale=scale, seed=classes)
        exact = exact_cost(p, classification, gamma=gamma)
        reference = matching_cost(**p, classification=classification, focal_gamma=gamma, **WEIGHTS)
        error = (native_cost(p, classification, gamma=gamma).double() - exact).abs().max()
        own_error = (reference.double() - exact).abs().max()
        assert error <= max(2 * own_error, 8 * torch.finfo(torch.float32).eps * exact.abs().max())


def test_costs_of_boxes_are_the_references_to_the_bit(device):
    if device == "cuda":
        pytest.skip("costs never leave the device; the assignments of both are compared")
    p = problem(queries=200, scale=0.0)  # equal logits: the class part is the same for all
    p["logits"] -= 40.0
    weights = {"class_cost": 2.0, "bbox_cost": 5.0, "giou_cost": 2.0}
    reference = matching_cost(**p, classification="focal", **weights)
    assert torch.equal(native_cost(p, "focal"), reference)


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0.5},
        {"gamma": 1.0},
        {"swap": [1, 0, 3, 2]},
        {"swap": [0, 1, 3, 2]},
        {"classification": "softmax"},
        {"shift": 1},
    ],
    ids=str,
)
def test_a_wrong_cost_would_be_seen(wrong):
    p, changed = problem(), problem()
    changed["boxes"] = changed["boxes"][..., wrong.get("swap", [0, 1, 2, 3])].contiguous()
    changed["target_classes"] = (changed["target_classes"] + wrong.get("shift", 0)) % 21
    native = native_cost(
        changed,
        wrong.get("classification", "focal"),
        wrong.get("alpha", 0.25),
        wrong.get("gamma", 2.0),
    )
    assert (native - exact_cost(p, "focal")).abs().max() > 0.05


@pytest.mark.parametrize("classification", ["softmax", "focal"])
@pytest.mark.parametrize("copies", [1, 2, 6])
def test_matches_are_optimal_for_the_costs(device, classification, copies):
    """Also with more wanted than there are queries, in some images and in all."""
    for seed, queries in enumerate([70, 300, 13, 5, 1]):
        p = problem(queries=queries, seed=seed, device=device)
        found = match(**p, classification=classification, copies=copies, **WEIGHTS)
        cost = matching_cost(**p, classification=classification, **WEIGHTS).cpu()
        repeated, counts = repeat(cost, p["counts"], copies)
        assert found.query_of_target.device == p["logits"].device
        assert (found.num_bad == 0).all()
        assert_nearly_optimal(repeated, counts, found.query_of_target)
        if max(counts) <= queries:
            assert_copies_rise(found.query_of_target.cpu(), p["counts"], copies)


def repeat(cost: Tensor, counts, copies: int) -> tuple[Tensor, list[int]]:
    rows = [torch.arange(cost.shape[1])[rows].repeat(copies) for _, rows in blocks(counts)]
    return cost[:, torch.cat(rows)], [count * copies for count in counts]


def assert_nearly_optimal(cost: Tensor, counts, query_of_target: Tensor) -> None:
    """As `assert_optimal`, for costs that are the reference's: the native ones differ a little."""
    rounded = 1e-5
    cost = cost.double()
    found = query_of_target.cpu()
    for layer in range(len(cost)):
        for _, rows in blocks(counts):
            block, chosen = cost[layer, rows].numpy(), found[layer, rows].numpy()
            taken = chosen >= 0
            assert taken.sum() == min(block.shape)
            assert len(set(chosen[taken].tolist())) == taken.sum()
            best = block[scipy.optimize.linear_sum_assignment(block)]
            total = block[taken.nonzero()[0], chosen[taken]].sum()
            assert total <= best.sum() + rounded * len(best)


def assert_copies_rise(query_of_target: Tensor, counts, copies: int) -> None:
    for _, rows in blocks([count * copies for count in counts]):
        queries = query_of_target[:, rows].unflatten(1, (copies, -1))
        assert (queries.diff(dim=1) > 0).all()


def test_copies_equal_repeated_targets(device):
    p = problem(queries=300, device=device)
    once = match(**p, classification="focal", copies=3, **WEIGHTS)
    rows = torch.cat([torch.arange(12)[rows].repeat(3) for _, rows in blocks(p["counts"])])
    rows = rows.to(device)
    repeated = {
        **p,
        "target_classes": p["target_classes"][rows],
        "target_boxes": p["target_boxes"][rows],
        "counts": [3 * count for count in p["counts"]],
    }
    again = match(**repeated, classification="focal", **WEIGHTS).query_of_target
    pairs = [
        {(int(t), int(q)) for t, q in zip(rows.tolist(), queries, strict=True)}
        for queries in (once.query_of_target[1].tolist(), again[1].tolist())
    ]
    assert pairs[0] == pairs[1]


def test_each_image_and_layer_sees_only_its_own(device):
    p = problem(layers=3, device=device)
    before = match(**p, classification="softmax", **WEIGHTS)
    p["logits"][1, 2], p["boxes"][1, 2] = float("nan"), float("inf")
    after = match(**p, classification="softmax", **WEIGHTS)
    expected = torch.zeros(3, 4, dtype=torch.int64)
    expected[1, 2] = 8 * 70
    assert torch.equal(after.num_bad.cpu(), expected)
    same = torch.ones(3, 12, dtype=torch.bool)
    same[1, 3:11] = False
    assert torch.equal(after.query_of_target.cpu()[same], before.query_of_target.cpu()[same])
    # All equally bad: the first queries, in order.
    assert after.query_of_target[1, 3:11].tolist() == list(range(8))


@pytest.mark.parametrize("classification", ["softmax", "focal"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["logits", "boxes"])
@pytest.mark.parametrize("copies", [1, 9])
def test_what_is_not_finite_is_counted_as_the_reference_counts(
    device, classification, value, where, copies
):
    """Nine copies want more than there is: then costs are transposed before they are solved."""
    p = problem(classes=5, queries=40, device=device)
    generator = torch.Generator().manual_seed(1)
    p[where][torch.rand(p[where].shape, generator=generator).to(device) < 0.01] = value
    found = match(**p, classification=classification, copies=copies, **WEIGHTS)
    weights = (2.0, 5.0, 2.0, 0.25, 2.0)
    expected = match_reference(*p.values(), classification, weights, copies)
    assert torch.equal(found.num_bad, expected.num_bad)
    cost = matching_cost(**p, classification=classification, **WEIGHTS).cpu()
    cost = torch.where(cost.isfinite(), cost, BAD_COST)
    assert_nearly_optimal(*repeat(cost, p["counts"], copies), found.query_of_target)


def test_rows_of_infinities(device):
    """Logits that overflowed in one class or in all, next to NaN: as in PyTorch."""
    p = problem(classes=18, queries=8, counts=(18,), layers=1, device=device)
    p["target_classes"] = torch.arange(18, device=device)
    p["logits"][0, 0, 0, 3] = math.inf
    p["logits"][0, 0, 1] = math.inf
    p["logits"][0, 0, 2] = -math.inf
    p["logits"][0, 0, 3, 1:] = -math.inf
    p["logits"][0, 0, 4, [2, 17]] = torch.tensor([math.inf, math.nan], device=device)
    p["logits"][0, 0, 5, 17] = math.nan
    for classification in ("softmax", "focal"):
        found = match(**p, classification=classification, **WEIGHTS)
        expected = (~matching_cost(**p, classification=classification, **WEIGHTS).isfinite()).sum()
        assert found.num_bad.item() == expected.item() > 0


def test_boxes_without_area_or_far_too_large(device):
    p = problem(device=device)
    p["boxes"][:, :, ::3, 2:] = 0
    p["target_boxes"][::2, 2:] = 0
    p["boxes"][:, :, 1::3] *= 1e20  # their area overflows
    p["boxes"][:, :, 2::3] *= 1e-25
    found = match(**p, classification="focal", **WEIGHTS)
    cost = matching_cost(**p, classification="focal", **WEIGHTS)
    assert found.num_bad.sum() == (~cost.isfinite()).sum()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("classification", ["softmax", "focal"])
def test_logits_of_other_dtypes_are_widened(device, classification, dtype):
    p = problem(queries=131, classes=37, device=device)
    p["logits"] = p["logits"].to(dtype)
    found = match(**p, classification=classification, **WEIGHTS)
    wide = {**p, "logits": p["logits"].float()}
    widened = match(**wide, classification=classification, **WEIGHTS)
    assert torch.equal(found.query_of_target, widened.query_of_target)
    assert_nearly_optimal(
        matching_cost(**p, classification=classification, **WEIGHTS).cpu(),
        p["counts"],
        found.query_of_target,
    )


def test_strided_views_are_read_in_place(device):
    p = problem(queries=60, device=device)
    expected = match(**p, classification="softmax", **WEIGHTS)
    wide = torch.full((4, 2, 90, 30), math.nan, device=device)
    logits = wide[..., 20:80, 4:25].transpose(0, 1)  # (L, B, Q, K)
    logits.copy_(p["logits"])
    boxes = torch.full((2, 4, 4, 70), math.nan, device=device)[..., 5:65].transpose(2, 3)
    boxes.copy_(p["boxes"])
    targets = torch.full((12, 9), math.nan, device=device)[:, 2:6]
    targets.copy_(p["target_boxes"])
    classes = torch.full((24,), 10**12, device=device)[::2]
    classes.copy_(p["target_classes"])
    found = match(logits, boxes, classes, targets, p["counts"], classification="softmax", **WEIGHTS)
    assert torch.equal(found.query_of_target, expected.query_of_target)
    one_layer = {**p, "logits": p["logits"][:1].expand(3, -1, -1, -1)}
    one_layer["boxes"] = p["boxes"][:1].expand(3, -1, -1, -1)
    found = match(**one_layer, classification="softmax", **WEIGHTS)
    assert (found.query_of_target == expected.query_of_target[:1]).all()


def test_matches_do_not_depend_on_threads_or_processor():
    p = problem(layers=6, counts=(7, 0, 30, 2, 55, 1), queries=150, classes=91)
    found, threads, before = [], torch.get_num_threads(), NATIVE.instruction_set()
    try:
        for instruction_set in INSTRUCTION_SETS:
            NATIVE.use_instruction_set(instruction_set)
            for number in (1, 2, 4):
                torch.set_num_threads(number)
                found.append(match(**p, classification="softmax", copies=2, **WEIGHTS))
    finally:
        NATIVE.use_instruction_set(before)
        torch.set_num_threads(threads)
    assert all(torch.equal(each.query_of_target, found[0].query_of_target) for each in found)


def test_costs_are_the_same_bits_on_every_processor():
    p = problem(layers=3, counts=(7, 0, 30), queries=150, classes=91, scale=4.0)
    before, costs = NATIVE.instruction_set(), []
    try:
        for instruction_set in INSTRUCTION_SETS:
            NATIVE.use_instruction_set(instruction_set)
            for classification, gamma in [("softmax", 2.0), ("focal", 2.0), ("focal", 1.3)]:
                costs.append(native_cost(p, classification, gamma=gamma))
    finally:
        NATIVE.use_instruction_set(before)
    assert all(torch.equal(cost, costs[i % 3]) for i, cost in enumerate(costs))


def test_tokens_of_a_two_stage_encoder(device):
    p = problem(layers=1, counts=(5, 30), queries=22_323, classes=3, device=device)
    p["target_classes"][:] = 0
    found = match(**p, classification="focal", **WEIGHTS)
    cost = matching_cost(**p, classification="focal", **WEIGHTS).cpu()
    assert_nearly_optimal(cost, p["counts"], found.query_of_target)


@pytest.mark.parametrize(
    ("layers", "counts", "queries"),
    [(0, (2,), 5), (2, (), 5), (2, (0, 0), 5), (1, (3, 0), 0), (1, (0,), 0), (1, (1,), 1)],
)
def test_nothing_to_match(device, layers, counts, queries):
    p = problem(layers=layers, counts=counts, queries=queries, device=device)
    found = match(**p, classification="softmax", **WEIGHTS)
    assert found.query_of_target.shape == (layers, sum(counts))
    assert (found.query_of_target == (-1 if queries == 0 else 0)).all()
    assert found.num_bad.shape == (layers, len(counts))
    assert (found.num_bad == 0).all()


def test_many_images(device):
    """More than the table of one CUDA launch has room for."""
    counts = tuple(n % 4 for n in range(600))
    p = problem(layers=1, counts=counts, queries=9, classes=2, device=device)
    found = match(**p, classification="focal", **WEIGHTS)
    cost = matching_cost(**p, classification="focal", **WEIGHTS)
    assert_nearly_optimal(cost.cpu(), counts, found.query_of_target)
    assert_optimal(cost, counts, linear_sum_assignment(cost, counts))


def test_it_is_outside_of_autograd_and_autocast(device):
    p = problem(device=device)
    expected = match(**p, classification="focal", **WEIGHTS)
    p["logits"].requires_grad_()
    p["boxes"].requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16):
        found = match(**p, classification="focal", **WEIGHTS)
    assert not found.query_of_target.requires_grad
    assert torch.equal(found.query_of_target, expected.query_of_target)
    cost = torch.rand(1, 3, 5, device=device, requires_grad=True)
    assert not linear_sum_assignment(cost, [3]).requires_grad


@pytest.mark.filterwarnings("ignore")
def test_operators_pass_the_checks_of_torch():
    p = problem(queries=9)
    arguments = (*(x.clone() for x in list(p.values())[:4]), list(p["counts"]), 2, True, [2.0] * 5)
    torch.library.opcheck(torch.ops.predet.match.default, arguments)
    torch.library.opcheck(
        torch.ops.predet.linear_sum_assignment.default, (torch.rand(2, 4, 6), [1, 3])
    )


@pytest.mark.slow
def test_it_compiles_into_one_graph():
    p = problem()

    @torch.compile(fullgraph=True)
    def compiled(logits, boxes, classes, targets):
        found = match(
            logits * 1.0, boxes, classes, targets, (3, 0, 8, 1), classification="focal", **WEIGHTS
        )
        return found.query_of_target + 0, found.num_bad + 0

    query_of_target, num_bad = compiled(*list(p.values())[:4])
    expected = match(**p, classification="focal", **WEIGHTS)
    assert torch.equal(query_of_target, expected.query_of_target)
    assert torch.equal(num_bad, expected.num_bad)


def test_several_threads_of_python_at_once():
    problems = [problem(queries=100, counts=(20, 9), seed=seed) for seed in range(6)]
    expected = [match(**p, classification="softmax", **WEIGHTS) for p in problems]
    found = [None] * len(problems)

    def work(i):
        for _ in range(5):
            found[i] = match(**problems[i], classification="softmax", **WEIGHTS)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(problems))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.query_of_target, b.query_of_target)


def test_without_the_extension_the_reference_runs(monkeypatch):
    p = problem()
    native = match(**p, classification="focal", copies=2, **WEIGHTS)
    cost = matching_cost(**p, classification="focal", **WEIGHTS)
    assigned = linear_sum_assignment(cost, p["counts"])
    monkeypatch.setattr(extension, "supports", lambda *_: False)
    monkeypatch.setattr(matching, "match_native", None)
    monkeypatch.setattr(matching, "linear_sum_assignment_native", None)
    reference = match(**p, classification="focal", copies=2, **WEIGHTS)
    assert reference.query_of_target.shape == native.query_of_target.shape
    repeated, counts = repeat(cost, p["counts"], 2)
    assert_optimal(repeated, counts, reference.query_of_target)
    assert torch.equal(reference.num_bad, native.num_bad)
    assert torch.equal(linear_sum_assignment(cost, p["counts"]), assigned)
    with pytest.raises(ValueError):
        linear_sum_assignment(cost * math.nan, p["counts"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.zeros(2, 4, 69, 4)}, r"\(2, 4, 69, 4\)"),
        ({"boxes": torch.zeros(2, 4, 70, 4, device="meta")}, "meta"),
        ({"target_boxes": torch.zeros(12, 4, device="meta")}, "meta"),
        ({"target_boxes": torch.zeros(11, 4)}, r"\(11, 4\)"),
        ({"target_classes": torch.full((12,), 21)}, "class 21"),
        ({"target_classes": torch.full((12,), -1)}, "class -1"),
        ({"target_classes": torch.full((12,), -(2**62))}, "class -4611686018427387904"),
        ({"counts": (3, 0, 9)}, "3 target counts"),
        ({"counts": (4, -1, 8, 1)}, "-1 targets"),
        ({"counts": (3, 0, 8, 2)}, "13 targets"),
        ({"classification": "sigmoid"}, "'sigmoid'"),
        ({"copies": 0}, "got 0"),
        ({"copies": 2**40}, "2\\^31"),
        ({"bbox_cost": math.nan}, "not finite"),
        ({"focal_gamma": -1.0}, "focal_gamma"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(change, message):
    arguments = {**problem(), "classification": "focal", **WEIGHTS, **change}
    with pytest.raises(ValueError, match=message):
        match(**arguments)


@pytest.mark.parametrize(
    ("cost", "counts", "message"),
    [
        (torch.zeros(2, 3), [3], r"\(2, 3\)"),
        (torch.zeros(1, 3, 4), [2], "M = 2"),
        (torch.zeros(1, 3, 4), [4, -1], "-1 targets"),
        (torch.full((1, 3, 4), math.nan), [3], "12 costs are not finite"),
        (np.full((1, 3, 4), np.inf), [3], "12 costs are not finite"),
    ],
)
def test_costs_that_do_not_fit_are_named(cost, counts, message):
    with pytest.raises(ValueError, match=message):
        linear_sum_assignment(cost, counts)


def test_the_operators_refuse_what_the_loops_cannot_take():
    p = list(problem().values())
    good = (*p[:4], list(p[4]), 1, True, [1.0] * 5)
    changes = [
        (0, p[0].double()),
        (0, p[0][0]),
        (1, p[1].double()),
        (1, p[1][..., :3]),
        (2, p[2].int()),
        (2, p[2][:-1]),
        (3, p[3].half()),
        (4, [3, 0, 9]),
        (5, 0),
        (7, [1.0]),
    ]
    for place, wrong in changes:
        arguments = (*good[:place], wrong, *good[place + 1 :])
        with pytest.raises(ValueError):
            torch.ops.predet.match(*arguments)
    for cost, counts in [(torch.zeros(1, 3, 4).half(), [3]), (torch.zeros(3, 4), [3])]:
        with pytest.raises(ValueError):
            torch.ops.predet.linear_sum_assignment(cost, counts)


GOOD_MATCH = {
    "place": (-1, 0, 1),
    "sizes": (1, 1, 2, 3, 1),
    "counts": (1,),
    "logits_type": 0,
    "strides": (6, 6, 3, 8, 8, 4),
    "weights": (1.0, 1.0, 1.0, 0.25, 2.0),
    "softmax": True,
    "addresses": [0] * 7,
}


@pytest.mark.parametrize(
    "change",
    [
        {},  # no memory
        {"sizes": (-1, 1, 2, 3, 1)},
        {"sizes": (1, 1, 2, 3, 0)},
        {"sizes": (1, 2, 2, 3, 1)},
        {"sizes": (1, 1, 2**31, 3, 1)},
        {"sizes": (2**40, 1, 2**30, 2**30, 1)},
        {"sizes": (1, 1, 2, 3, 2**62)},
        {"sizes": (1, 1, 2, 3)},
        {"sizes": (1, 1, 2, 3, 2**64)},
        {"counts": (-1,)},
        {"counts": (2**31,)},
        {"counts": (2**62,)},
        {"counts": ()},
        {"counts": "x"},
        {"logits_type": 3},
        {"logits_type": -1},
        {"weights": (1.0, math.inf, 1.0, 0.25, 2.0)},
        {"weights": (1.0,)},
        {"addresses": []},
        {"addresses": [-1] * 7},
        {"place": (-2, 0, 1)},
        {"place": (-1, 0)},
    ],
    ids=str,
)
def test_the_binding_refuses_what_it_can_see(change):
    with pytest.raises((ValueError, TypeError, OverflowError)):
        NATIVE.hungarian_match(*{**GOOD_MATCH, **change}.values())


@pytest.mark.parametrize(
    "arguments",
    [
        ((-1, 0, 1), (1, 1, 2), (1,), 0, (2, 2), [0, 0, 0, 0]),
        ((-1, 0, 0), (1, 0, 2), (), 7, (2, 2), [0, 0, 0, 0]),
        ((-1, 0, 1), (1, 1, 2), (1,), 1, (2, 2), [8, 8, 8, 8]),
        ((-1, 0, 1), (1, 1, -2), (1,), 0, (2, 2), [8, 8, 8, 8]),
        ((-1, 0, 1), (2**62, 1, 2**30), (2**30,), 0, (2, 2), [8, 8, 8, 8]),
        ((-1, 0, 1), (1, 1, 2), (1, 1), 0, (2, 2), [8, 8, 8, 8]),
        ((-1, 0, 1), (1, 1, 2), (1,), 0, (2, 2), [8, 8]),
    ],
)
def test_the_binding_of_given_costs_refuses_what_it_can_see(arguments):
    with pytest.raises((ValueError, TypeError, OverflowError)):
        NATIVE.hungarian_assign(*arguments)
