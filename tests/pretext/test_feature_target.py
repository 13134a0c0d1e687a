"""The loss on features of patches against sums by hand, pair by pair."""

from __future__ import annotations

import math

import pytest
import torch

from predet.modeling.matcher import Matches
from predet.modeling.outputs import DetectorOutput
from predet.modeling.targets import Targets
from predet.pretext.feature_target import (
    FeatureTarget,
    MeanAbsolute,
    NormalizedSquared,
    SummedAbsolute,
)

LAYERS, QUERIES, HIDDEN, FEATURES = 3, 5, 4, 6
COUNTS = (2, 0, 1)


def make_case() -> tuple[DetectorOutput, Targets, Matches, torch.Tensor]:
    """Three images; each layer matches other queries, and targets in an order of its own."""
    generator = torch.Generator().manual_seed(0)
    shape = (LAYERS, len(COUNTS), QUERIES)
    hidden = torch.randn(*shape, HIDDEN, generator=generator, requires_grad=True)
    output = DetectorOutput(hidden, torch.zeros(*shape, 1), torch.zeros(*shape, 4))
    targets = Targets(torch.zeros(3, dtype=torch.long), torch.rand(3, 4), COUNTS)
    matches = Matches(
        torch.tensor([0, 0, 2]),
        torch.tensor([[4, 0, 3], [1, 2, 2], [3, 4, 0]]),
        torch.tensor([[0, 1, 2], [1, 0, 2], [1, 0, 2]]),
    )
    return output, targets, matches, torch.randn(3, FEATURES, generator=generator)


def make_target(distance=None, **options) -> FeatureTarget:
    torch.manual_seed(1)
    return FeatureTarget(
        hidden_dim=HIDDEN, num_features=FEATURES, distance=distance or MeanAbsolute(), **options
    )


def plain(kind: str, predicted: list[float], wanted: list[float]) -> float:
    if kind == "unit":
        lengths = math.hypot(*predicted), math.hypot(*wanted)
        pairs = zip(predicted, wanted, strict=True)
        return sum((p / lengths[0] - w / lengths[1]) ** 2 for p, w in pairs)
    total = sum(abs(p - w) for p, w in zip(predicted, wanted, strict=True))
    return total / FEATURES if kind == "mean" else total


@pytest.mark.parametrize(
    ("kind", "distance"),
    [("mean", MeanAbsolute()), ("sum", SummedAbsolute()), ("unit", NormalizedSquared())],
    ids=["mean", "sum", "unit"],
)
@pytest.mark.parametrize("layers", ["last", "all"])
def test_losses_equal_a_plain_recomputation(kind: str, distance, layers: str) -> None:
    output, targets, matches, features = make_case()
    target = make_target(distance, layers=layers, weight=0.5)
    losses = target(output, targets, matches, features)
    first, second = target.head.layers
    expected = {}
    for layer, name in enumerate(("loss_feature_0", "loss_feature_1", "loss_feature")):
        total = 0.0
        for image, query, row in zip(
            matches.image, matches.query[layer], matches.target[layer], strict=True
        ):
            inner = (first.weight @ output.hidden[layer, image, query] + first.bias).clamp(min=0)
            predicted = second.weight @ inner + second.bias
            total += plain(kind, predicted.tolist(), features[row].tolist())
        expected[name] = 0.5 * total / sum(COUNTS)
    if layers == "last":
        expected = {"loss_feature": expected["loss_feature"]}
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-5), name


def test_the_mean_over_pairs_and_features_is_that_of_torch() -> None:
    """The published loss: torch's own L1 loss of what is matched."""
    output, targets, matches, features = make_case()
    target = make_target()
    predicted = target.predict(output.hidden[-1, matches.image, matches.query[-1]])
    expected = torch.nn.functional.l1_loss(predicted, features[matches.target[-1]])
    loss = target(output, targets, matches, features)["loss_feature"]
    torch.testing.assert_close(loss, expected)


def test_it_is_normalised_over_the_whole_step() -> None:
    """Two parts of a step, 9 boxes in all: each divides by 4.5, whatever it has itself."""
    output, targets, matches, features = make_case()
    counts = torch.tensor([[2, 0, 1], [5, 1, 0]])
    target = make_target()
    alone = target(output, targets, matches, features)["loss_feature"]
    shared = target(output, targets._replace(step_counts=counts), matches, features)["loss_feature"]
    torch.testing.assert_close(shared * 4.5, alone * 3)


def test_only_matched_queries_and_the_head_learn() -> None:
    output, targets, matches, features = make_case()
    features.requires_grad_()
    target = make_target()
    target(output, targets, matches, features)["loss_feature"].backward()
    moved = {tuple(at) for at in output.hidden.grad.abs().sum(-1).nonzero().tolist()}
    assert moved == {(2, 0, 3), (2, 0, 4), (2, 2, 0)}
    assert all(p.grad.abs().sum() > 0 for p in target.head.parameters())


def test_no_pair_at_all_is_zero_and_still_reaches_the_head() -> None:
    output = make_case()[0]
    nothing = torch.zeros(LAYERS, 0, dtype=torch.long)
    targets = Targets(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4), (0, 0, 0))
    for layers in ("last", "all"):
        target = make_target(NormalizedSquared(), layers=layers)
        matches = Matches(nothing[0], nothing, nothing)
        losses = target(output, targets, matches, torch.zeros(0, FEATURES))
        total = sum(losses.values())
        total.backward()
        assert total == 0
        assert all(p.grad is not None and not p.grad.any() for p in target.parameters())


def test_layers_of_the_head_and_misspelt_options() -> None:
    assert [layer.out_features for layer in make_target(num_layers=3).head.layers] == [4, 4, 6]
    with pytest.raises(ValueError, match=r"layers must be one of \('last', 'all'\), got 'first'"):
        make_target(layers="first")
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        make_target(weight=-1)
