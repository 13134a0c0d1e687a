"""The momentum copy to the digit, and what is copied or shared instead."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from predet.projects.align_det.momentum import MomentumCopy, momentum_at


class Parts(nn.Module):
    """A frozen part, a trained one with statistics, and queries."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(3, 4).requires_grad_(False)
        self.trained = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.query_embed = nn.Embedding(2, 3)


def test_momentum_rises_along_half_a_cosine():
    values = [momentum_at(step, 1000, base=0.996) for step in range(1000)]
    assert values[0] == pytest.approx(0.996, abs=1e-12)
    assert values[500] == pytest.approx(0.998, abs=1e-12)
    assert values[250] == pytest.approx(1 - 0.004 * (math.sqrt(0.5) + 1) / 2, abs=1e-12)
    assert values == sorted(values)
    assert 1 - 1e-7 < values[-1] < 1


def test_copy_is_the_average_by_loops():
    torch.manual_seed(0)
    source = Parts()
    sources = {"parts": source}
    target = MomentumCopy(sources)
    start = {name: p.detach().double() for name, p in source.named_parameters()}
    expected = {name: value.clone() for name, value in start.items()}
    for step in range(7):
        with torch.no_grad():
            for parameter in source.parameters():
                if parameter.requires_grad:
                    parameter += torch.randn_like(parameter)
            source.trained[1].running_mean += 1
        momentum = momentum_at(step, 7, base=0.5)
        target.follow(sources, momentum)
        for name, parameter in source.named_parameters():
            now = parameter.detach().double()
            if name == "query_embed.weight":
                expected[name] = now
            else:
                expected[name] = momentum * expected[name] + (1 - momentum) * now
    for name, parameter in target["parts"].named_parameters():
        torch.testing.assert_close(parameter.double(), expected[name], atol=1e-6, rtol=1e-6)
        assert not parameter.requires_grad
    assert not target["parts"].trained[0].weight.equal(source.trained[0].weight)
    assert target["parts"].query_embed.weight.equal(source.query_embed.weight)
    assert target["parts"].query_embed.weight is not source.query_embed.weight
    assert target["parts"].trained[1].running_mean.equal(source.trained[1].running_mean)
    assert target["parts"].frozen is source.frozen
    assert all(p.requires_grad for p in source.trained.parameters())


def test_reset_makes_them_equal():
    torch.manual_seed(0)
    source = Parts()
    target = MomentumCopy({"parts": source})
    source.load_state_dict(Parts().state_dict())
    assert not target["parts"].trained[0].weight.equal(source.trained[0].weight)
    target.reset({"parts": source})
    own = target["parts"].state_dict()
    assert all(own[name].equal(value) for name, value in source.state_dict().items())


def test_a_copy_of_the_whole_keeps_sharing():
    """As the trainer's own average of weights makes one."""
    source = Parts()
    whole = nn.ModuleDict({"online": source, "target": MomentumCopy({"parts": source})})
    other = copy.deepcopy(whole)
    assert other["target"]["parts"].frozen is other["online"].frozen
    assert other["online"].frozen is not source.frozen
