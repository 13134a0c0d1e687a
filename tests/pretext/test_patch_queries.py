"""Patches onto queries: groups, their mask, what is added where, and what training changes."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from predet.modeling.outputs import Queries
from predet.pretext.patch_queries import (
    PatchQueries,
    Standardize,
    group_mask,
    group_of_query,
)

SHAPES = [(12, 3), (100, 10), (7, 3), (25, 7), (10, 10), (9, 1), (101, 20), (50, 6)]


def groups_by_loops(num_queries: int, num_patches: int) -> list[int]:
    """Query by query: a new group begins as soon as its share of the queries has gone before."""
    found, group = [], 0
    for query in range(num_queries):
        while (group + 1) * num_queries <= query * num_patches:
            group += 1
        found.append(group)
    return found


@pytest.mark.parametrize(("num_queries", "num_patches"), SHAPES)
def test_groups_are_even_ordered_and_none_is_empty(num_queries, num_patches):
    group = group_of_query(num_queries, num_patches).tolist()
    assert group == groups_by_loops(num_queries, num_patches)
    assert group == sorted(group)
    sizes = [group.count(g) for g in range(num_patches)]
    assert sum(sizes) == num_queries
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


def mask_by_loops(num_queries: int, num_patches: int) -> torch.Tensor:
    group = groups_by_loops(num_queries, num_patches)
    mask = torch.zeros(num_queries, num_queries, dtype=torch.bool)
    for i, j in itertools.product(range(num_queries), repeat=2):
        if group[i] != group[j]:
            mask[i, j] = True
    return mask


def published_mask(num_queries: int, num_patches: int) -> torch.Tensor:
    """What the published loop makes: it runs over the queries of a group, not over the groups."""
    size = num_queries // num_patches
    mask = torch.ones(num_queries, num_queries, dtype=torch.bool)
    for i in range(size):
        mask[i * size : (i + 1) * size, i * size : (i + 1) * size] = False
    return mask


@pytest.mark.parametrize(("num_queries", "num_patches"), SHAPES)
def test_mask_equals_plain_loops(num_queries, num_patches):
    mask = group_mask(group_of_query(num_queries, num_patches))
    assert mask.dtype == torch.bool
    assert mask.shape == (num_queries, num_queries)
    assert torch.equal(mask, mask_by_loops(num_queries, num_patches))
    assert not mask.all(dim=1).any()  # every query sees somebody


def test_the_published_loop_fails_the_test_of_the_mask():
    """It is right for 100 queries and 10 patches, and wrong where groups are small or uneven."""
    assert torch.equal(published_mask(100, 10), mask_by_loops(100, 10))
    assert published_mask(100, 20).all(dim=1).sum() == 75  # queries that see nobody
    for shape in [(7, 3), (25, 7), (10, 10), (101, 20)]:
        assert not torch.equal(published_mask(*shape), mask_by_loops(*shape))


def make_queries(images: int, count: int, width: int = 8, seed: int = 0) -> Queries:
    generator = torch.Generator().manual_seed(seed)
    content, position = torch.randn(2, images, count, width, generator=generator)
    reference = torch.rand(images, count, 2, generator=generator)
    return Queries(content, position, reference=reference)


def make(**options) -> PatchQueries:
    torch.manual_seed(0)
    return PatchQueries(feature_dim=6, hidden_dim=8, **options)


@pytest.mark.parametrize("part", ["position", "content"])
@pytest.mark.parametrize(("num_queries", "num_patches"), [(12, 3), (7, 3), (11, 5), (6, 1)])
def test_each_query_gets_the_patch_of_its_group(part, num_queries, num_patches):
    layer = make(num_patches=num_patches, add_to=part).eval()
    features = torch.randn(2 * num_patches, 6)
    queries = make_queries(2, num_queries)
    conditioned = layer(features, [num_patches, num_patches])(queries)
    weight, bias = layer.patch2query.weight, layer.patch2query.bias
    group = groups_by_loops(num_queries, num_patches)
    for image, query in itertools.product(range(2), range(num_queries)):
        patch = weight @ features[image * num_patches + group[query]] + bias
        expected = getattr(queries, part)[image, query] + patch
        torch.testing.assert_close(getattr(conditioned, part)[image, query], expected)
    other = "content" if part == "position" else "position"
    assert torch.equal(getattr(conditioned, other), getattr(queries, other))
    assert torch.equal(conditioned.reference, queries.reference)
    assert torch.equal(conditioned.attention_mask, mask_by_loops(num_queries, num_patches))


def test_images_with_fewer_patches_leave_their_last_groups_alone():
    layer = make(num_patches=4).eval()
    queries = make_queries(3, 8)
    features = torch.randn(5, 6)
    conditioned = layer(features, [3, 0, 2])(queries)
    added = conditioned.position - queries.position
    torch.testing.assert_close(
        added[0, [0, 2, 4]], layer.patch2query(features[:3]), atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(
        added[2, [0, 2]], layer.patch2query(features[3:]), atol=1e-6, rtol=1e-5
    )
    assert not added[0, 6:].any()
    assert not added[1].any()
    assert not added[2, 4:].any()


def test_without_any_patch_the_projection_is_still_trained():
    layer = make(num_patches=2).train()
    layer(torch.zeros(0, 6), [0, 0])(make_queries(2, 4)).position.sum().backward()
    assert not layer.patch2query.weight.grad.any()
    assert not layer.patch2query.bias.grad.any()


@pytest.mark.parametrize("unit", ["queries", "patches"])
def test_masking_drops_the_whole_patch_of_queries_or_groups(unit):
    images, num_queries, num_patches = 400, 10, 5
    layer = make(num_patches=num_patches, mask=unit, mask_probability=0.1).train()
    with torch.no_grad():
        layer.patch2query.bias.fill_(5.0)  # a masked query does not get the bias either
    queries = make_queries(images, num_queries)
    features = torch.randn(images * num_patches, 6)
    torch.manual_seed(1)
    added = layer(features, [num_patches] * images)(queries).position - queries.position
    absent = (added.abs().sum(dim=2) < 1e-6).view(images, num_patches, 2)
    share = absent.double().mean().item()
    count = images * (num_queries if unit == "queries" else num_patches)
    assert abs(share - 0.1) < 4 * (0.1 * 0.9 / count) ** 0.5
    together = (absent[..., 0] == absent[..., 1]).all()
    assert bool(together) == (unit == "patches")
    evaluated = layer.eval()(features, [num_patches] * images)(queries).position
    assert ((evaluated - queries.position).abs().sum(dim=2) > 1e-6).all()


def test_shuffling_permutes_whole_queries_of_each_image_in_training_only():
    layer = make(num_patches=3, shuffle=True, mask_probability=0.0).train()
    queries = make_queries(4, 12)
    condition = layer(torch.randn(12, 6), [3, 3, 3, 3])
    shuffled = condition(queries)
    added = condition.patches[:, group_of_query(12, 3)]
    orders = []
    for image in range(4):
        base = shuffled.position[image] - added[image]
        order = torch.cdist(base, queries.position[image]).argmin(dim=1)
        assert sorted(order.tolist()) == list(range(12))
        torch.testing.assert_close(base, queries.position[image, order], atol=1e-5, rtol=1e-5)
        assert torch.equal(shuffled.content[image], queries.content[image, order])
        assert torch.equal(shuffled.reference[image], queries.reference[image, order])
        orders.append(tuple(order.tolist()))
    assert len(set(orders)) == 4
    assert torch.equal(shuffled.attention_mask, mask_by_loops(12, 3))
    still = layer.eval()(torch.randn(12, 6), [3] * 4)(queries)
    assert torch.equal(still.content, queries.content)


def test_groups_may_see_each_other():
    layer, queries = make(num_patches=3, groups_apart=False).eval(), make_queries(1, 6)
    conditioned = layer(torch.randn(3, 6), [3])(queries)
    assert conditioned.attention_mask is None
    assert not torch.equal(conditioned.position, queries.position)


def test_features_are_standardized_by_running_averages_over_patches():
    first, second = 5 + 2 * torch.randn(2, 40, 6, dtype=torch.float64)
    first[:, 0], second[:, 0] = 0, 0  # a channel that never fires
    layer = Standardize(6, momentum=0.25).train()
    mean, variance = first.mean(dim=0), first.var(dim=0)
    for batch in (first, second):
        found = layer(batch.float())
        if batch is second:
            mean = 0.75 * mean + 0.25 * second.mean(dim=0)
            variance = 0.75 * variance + 0.25 * second.var(dim=0)
        wanted = (batch - mean) / (variance + 0.01 * variance.mean()).sqrt()
        torch.testing.assert_close(found, wanted.float(), atol=1e-4, rtol=1e-4)
        assert found[:, 0].abs().max() < 1e-6
    before = copy.deepcopy(layer.state_dict())
    layer(first[:1].float())  # one patch has no variance
    torch.testing.assert_close(layer.eval()(first.float()), layer(first.float()))
    assert all(value.equal(before[name]) for name, value in layer.state_dict().items())
    other = Standardize(6).eval()
    other.load_state_dict(before)
    torch.testing.assert_close(other(first.float()), layer(first.float()))


def test_standardized_features_reach_the_queries():
    layer, queries = make(num_patches=2, standardize=True).train(), make_queries(3, 4)
    layer.mask_probability = 0.0
    features = 7 + torch.randn(6, 6)
    added = layer(features, [2, 2, 2])(queries).position - queries.position
    variance, mean = torch.var_mean(features, dim=0)
    normal = (features - mean) / (variance + 0.01 * variance.mean()).sqrt()
    expected = layer.patch2query(normal).view(3, 2, 8).repeat_interleave(2, dim=1)
    torch.testing.assert_close(added, expected, atol=1e-5, rtol=1e-4)


def test_queries_of_detr_have_no_reference_to_shuffle():
    layer = make(num_patches=3, shuffle=True).train()
    queries = make_queries(1, 6)._replace(reference=None)
    assert layer(torch.randn(3, 6), [3])(queries).reference is None


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: make(num_patches=0), r"num_patches must be at least 1, got 0"),
        (lambda: make(add_to="both"), r"add_to must be one of .* got 'both'"),
        (lambda: make(mask="heads"), r"mask must be one of .* got 'heads'"),
        (lambda: make(mask_probability=1.0), r"mask_probability must be in \[0, 1\), got 1"),
        (
            lambda: make(num_patches=2)(torch.zeros(4, 6), [1, 3]),
            r"image 1 of the batch has 3 patches.* num_patches=2 groups: it must be 3 or more",
        ),
        (
            lambda: make(num_patches=5)(torch.zeros(5, 6), [5])(make_queries(1, 4)),
            r"4 queries cannot be divided into 5 groups.* num_patches must be from 1 to 4",
        ),
    ],
)
def test_what_cannot_be_is_named(act, message):
    with pytest.raises(ValueError, match=message):
        act()
