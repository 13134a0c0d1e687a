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


def options_of(groups: list[dict], model: nn.Module) -> dict[str, tuple[float, bool]]:
    """Learning rate factor and whether it decays, of each parameter."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["lr_factor"], group.get("weight_decay", 1.0) > 0)
        for group in groups
        for parameter in group["params"]
    }


def deformable_detr(backbone: nn.Module) -> nn.Module:
    from predet.modeling.criterion import SetCriterion
    from predet.modeling.matcher import HungarianMatcher
    from predet.projects.deformable_detr import (
        DeformableDETR,
        DeformableTransformer,
        LearnedQueries,
    )

    sizes = {"num_encoder_layers": 1, "num_decoder_layers": 1, "ffn_dim": 32, "num_heads": 2}
    return DeformableDETR(
        backbone=backbone,
        transformer=DeformableTransformer(hidden_dim=32, **sizes),
        queries=LearnedQueries(num_queries=5, hidden_dim=32),
        criterion=SetCriterion(
            matcher=HungarianMatcher(classification="focal", class_cost=2.0),
            weights={"loss_class": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0},
        ),
        num_classes=2,
    )


def small_swin() -> nn.Module:
    pytest.importorskip("timm")
    from predet.modeling.swin import Swin

    sizes = {"embed_dim": 8, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 2), "window_size": 4}
    return Swin(weights=None, **sizes)


def test_every_parameter_learns_as_the_papers_say() -> None:
    """Deformable and H-Deformable DETR: backbone, offsets and points at 0.1, all weights decay."""
    model = deformable_detr(small_swin())
    groups = parameter_groups(
        model=model,
        lr_factors={"backbone": 0.1, "sampling_offsets": 0.1, "reference_points": 0.1},
    )
    slow = {n for n, (factor, _) in options_of(groups, model).items() if factor == 0.1}
    expected = {n for n, _ in model.named_parameters() if n.startswith("backbone.")} | {
        f"{place}.{kind}"
        for place in (
            "transformer.encoder_layers.0.self_attn.sampling_offsets",
            "transformer.decoder_layers.0.cross_attn.sampling_offsets",
            "queries.reference_points",
        )
        for kind in ("weight", "bias")
    }
    assert slow == expected
    assert all(decays for _, decays in options_of(groups, model).values())
    assert {factor for factor, _ in options_of(groups, model).values()} == {0.1, 1.0}


def test_norms_and_position_biases_can_go_without_decay() -> None:
    model = deformable_detr(small_swin())
    groups = parameter_groups(
        model=model, decay_norms=False, no_weight_decay=["relative_position_bias_table"]
    )
    without = {n for n, (_, decays) in options_of(groups, model).items() if not decays}
    norms = ("norm", "downsample.norm", "input_proj.0.1", "input_proj.1.1", "input_proj.2.1")
    expected = {
        name
        for name, _ in model.named_parameters()
        if "relative_position_bias_table" in name
        or any(part in name for part in (*norms, "input_proj.3.1"))
    }
    assert without == expected
    assert "input_proj.3.1.weight" in without
    assert "backbone.output_norms.stage4.bias" in without
    assert "backbone.layers.0.blocks.0.attn.qkv.bias" not in without


def test_layer_decay_of_swin() -> None:
    model = deformable_detr(small_swin())
    options = options_of(
        parameter_groups(model=model, lr_factors={"backbone": 0.1}, layer_decay=0.5), model
    )
    # Patch embedding, blocks 1 + 2 + 1 + 1, norms of the maps: the last of layers 0 to 6.
    wanted = {
        "backbone.output_norms.stage5.weight": 0.1,
        "backbone.layers.3.blocks.0.mlp.fc1.weight": 0.1 / 2,
        "backbone.layers.2.downsample.reduction.weight": 0.1 / 4,
        "backbone.layers.1.blocks.1.attn.qkv.weight": 0.1 / 8,
        "backbone.layers.1.blocks.0.attn.qkv.weight": 0.1 / 16,
        "backbone.layers.0.blocks.0.norm1.weight": 0.1 / 32,
        "backbone.patch_embed.proj.weight": 0.1 / 64,
        "transformer.level_embed": 1.0,
    }
    assert {name: options[name][0] for name in wanted} == pytest.approx(wanted)


def test_layer_decay_of_resnet() -> None:
    from predet.modeling.backbone import ResNet

    backbone = ResNet(depth=18, weights=None, norm="gn", freeze_at=0, out_stages=(3, 4, 5))
    options = options_of(parameter_groups(model=backbone, layer_decay=0.9), backbone)
    assert options["conv1.weight"][0] == pytest.approx(0.9**8)
    assert options["layer1.0.bn1.weight"][0] == pytest.approx(0.9**7)
    assert options["layer4.0.downsample.0.weight"][0] == pytest.approx(0.9)
    assert options["layer4.1.conv2.weight"][0] == 1.0
    with pytest.raises(ValueError, match=r"no part of Linear tells its layer_depths"):
        parameter_groups(model=nn.Linear(2, 2), layer_decay=0.9)
    with pytest.raises(ValueError, match=r"above 0 and at most 1, got 1\.5"):
        parameter_groups(model=backbone, layer_decay=1.5)


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


@pytest.mark.parametrize(
    ("epochs", "drop"),
    [(300, 200), (50, 40), (12, 11), (24, 20), (36, 30), (60, 40), (15, 10)],
)
def test_the_papers_step_schedules(epochs: int, drop: int) -> None:
    """DETR; Deformable DETR; H-Deformable DETR (12, 24, 36); UP-DETR (60, 15)."""
    epoch = 118_287 // 16
    schedule = WarmupSchedule(max_iter=epochs * epoch, drop_steps=[drop * epoch])
    optimizer = torch.optim.AdamW(TinyDetector(num_classes=2).parameters(), lr=2e-4)
    rates = [
        set_learning_rates(optimizer, schedule, step, epochs * epoch)
        for step in (0, drop * epoch - 1, drop * epoch, epochs * epoch - 1)
    ]
    assert rates == pytest.approx([2e-4, 2e-4, 2e-5, 2e-5], rel=1e-12)


def test_detectron2s_schedule_of_detr() -> None:
    """554,400 steps, drop at 369,600, ten steps of warm-up from a thousandth."""
    length = 554_400
    schedule = WarmupSchedule(max_iter=length, drop_steps=[369_600], warmup_steps=10)
    expected = {0: 0.001, 5: 0.5005, 9: 0.9001, 10: 1.0, 369_599: 1.0, 369_600: 0.1}
    for step, multiplier in expected.items():
        assert schedule(step / length) == pytest.approx(multiplier, rel=1e-9)


def test_cosine_falls_as_a_loop_by_hand() -> None:
    schedule = WarmupSchedule(max_iter=40, cosine=True, warmup_steps=8, final_factor=0.01)
    found = [schedule(step / 40) for step in range(40)]
    by_hand = [0.001 + 0.999 * step / 8 for step in range(8)]
    by_hand += [0.505 + 0.495 * math.cos(math.pi * step / 32) for step in range(32)]
    assert found == pytest.approx(by_hand, rel=1e-12)
    assert found[8:] == sorted(found[8:], reverse=True)


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
