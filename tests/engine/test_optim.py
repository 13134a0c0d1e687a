"""Parameter groups, schedules, moving average: against numbers made by hand."""

from __future__ import annotations

import math

import pytest
import torch
from engine_standins import TinyDetector, WithSiblings
from torch import nn

from predet.engine import WarmupSchedule, parameter_groups
from predet.engine.ema import EMA
from predet.engine.schedule import set_learning_rates


def names_of(model: nn.Module, group: dict) -> set[str]:
    ids = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in ids}


def test_each_parameter_is_in_one_group() -> None:
    model = WithSiblings(detector=TinyDetector(num_classes=2))
    model.projector.weight.requires_grad_(False)
    groups = parameter_groups(
        model=model,
        lr_factors={"backbone": 0.1, "backbone.norm": 0.01},
        no_weight_decay=["bias", "norm"],
    )
    every = [parameter for group in groups for parameter in group["params"]]
    assert len(every) == len(set(every))
    assert set(every) == {p for p in model.parameters() if p.requires_grad}
    found = {(g["lr_factor"], "weight_decay" in g): names_of(model, g) for g in groups}
    assert found == {
        (0.1, False): {"detector.backbone.conv.weight"},
        (0.1, True): {"detector.backbone.conv.bias"},
        (0.01, True): {"detector.backbone.norm.weight", "detector.backbone.norm.bias"},
        (1.0, False): {"detector.class_head.weight", "detector.box_head.weight"},
        (1.0, True): {"detector.class_head.bias", "detector.box_head.bias", "projector.bias"},
    }
    assert all(g.get("weight_decay", 0.0) == 0.0 for g in groups)


def test_everything_has_weight_decay_by_default() -> None:
    (group,) = parameter_groups(model=TinyDetector(num_classes=2))
    assert group["lr_factor"] == 1.0
    assert "weight_decay" not in group


def test_patterns_name_whole_parts() -> None:
    model = nn.ModuleDict({"backbone2": nn.Linear(2, 2), "layers": nn.Sequential(nn.Linear(2, 2))})
    with pytest.raises(
        ValueError, match=r"'backbone' matches no .*nearest parts of names: backbone2"
    ):
        parameter_groups(model=model, lr_factors={"backbone": 0.1})
    groups = parameter_groups(model=model, lr_factors={"layers.*.bias": 0.5})
    assert names_of(model, groups[1]) == {"layers.0.bias"}
    with pytest.raises(ValueError, match="matches no"):
        parameter_groups(model=model, no_weight_decay=["norm"])
    with pytest.raises(ValueError, match="freeze the module"):
        parameter_groups(model=model, lr_factors={"layers": 0.0})


def test_shared_parameters_are_found_under_any_name() -> None:
    head = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": head, "b": head})
    groups = parameter_groups(model=model, lr_factors={"b": 0.5})
    assert [g["lr_factor"] for g in groups] == [0.5]
    assert len(groups[0]["params"]) == 2


def test_learning_rates_follow_factor_and_schedule() -> None:
    model = TinyDetector(num_classes=2)
    groups = parameter_groups(model=model, lr_factors={"backbone": 0.1})
    optimizer = torch.optim.AdamW(groups, lr=2e-4)
    schedule = WarmupSchedule(max_iter=100, drop_steps=[80, 90], warmup_steps=10, warmup_factor=0.1)
    expected = {0: 0.1, 5: 0.55, 10: 1.0, 79: 1.0, 80: 0.1, 89: 0.1, 90: 0.01, 99: 0.01}
    for step, multiplier in expected.items():
        rate = set_learning_rates(optimizer, schedule, step, 100)
        assert rate == pytest.approx(2e-4 * multiplier, rel=1e-12)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([2e-5 * multiplier, 2e-4 * multiplier], rel=1e-12)


def test_schedule_values() -> None:
    cosine = WarmupSchedule(max_iter=110, cosine=True, warmup_steps=10, final_factor=0.2)
    assert cosine(10 / 110) == 1.0
    assert cosine(60 / 110) == pytest.approx(0.6)
    assert cosine(35 / 110) == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi / 4)))
    for steps in (3, 7, 49, 1000, 554_400):  # no off-by-one from step / max_iter
        schedule = WarmupSchedule(max_iter=steps, drop_steps=[steps - 1])
        assert schedule((steps - 2) / steps) == 1.0
        assert schedule((steps - 1) / steps) == pytest.approx(0.1)
    for wrong in (
        {"drop_steps": [5, 3]},
        {"cosine": True, "drop_steps": [1]},
        {"warmup_steps": -1},
    ):
        with pytest.raises(ValueError, match=r"drop_steps|warmup_steps"):
            WarmupSchedule(max_iter=9, **wrong)


def test_ema_equals_a_loop_by_hand() -> None:
    torch.manual_seed(0)
    model = TinyDetector(num_classes=2)
    model.box_head.bias.requires_grad_(False)
    ema = EMA(model, decay=0.75)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
            model.backbone.norm.running_mean.add_(1.0)
            model.backbone.norm.num_batches_tracked.add_(1)
        ema.update()
        for name, parameter in model.named_parameters():
            expected[name] = 0.75 * expected[name] + 0.25 * parameter.detach()
    for name, value in ema.model.named_parameters():
        if name == "box_head.bias":  # frozen: copied, not averaged
            assert torch.equal(value, model.box_head.bias)
            continue
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6)
        assert not torch.equal(value, dict(model.named_parameters())[name])
    assert torch.equal(ema.model.backbone.norm.running_mean, model.backbone.norm.running_mean)
    assert int(ema.model.backbone.norm.num_batches_tracked) == 5
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
