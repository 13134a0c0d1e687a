"""Transfer: every tensor is accounted for, or it is an error that names it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from predet.checkpoint import (
    class_names_of,
    load_detector,
    reinit_for_classes,
    save_checkpoint,
    weights_of,
)
from predet.layers.norm import freeze_batch_norm


class Detector(nn.Module):
    def __init__(self, *, num_classes: int = 3, width: int = 4) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width))
        self.class_head = nn.ModuleList([nn.Linear(width, num_classes) for _ in range(2)])
        self.box_head = nn.Linear(width, 4)


class Pretraining(nn.Module):
    def __init__(self, *, detector: nn.Module, out: int = 2) -> None:
        super().__init__()
        self.detector = detector
        self.projector = nn.Linear(4, out)


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_all_of_it(tmp_path: Path) -> None:
    source, target = Detector(), Detector()
    save_checkpoint(tmp_path / "a.pth", {"model": source.state_dict(), "step": 7})
    report = load_detector(target, tmp_path / "a.pth")
    assert_equal(state_of(target), state_of(source))
    assert set(report.loaded) == set(source.state_dict())
    assert report.reinitialised == report.dropped == report.untouched == ()
    assert f"loaded 13 tensors from {tmp_path / 'a.pth'}" in report.summary()


def test_from_a_bare_state_dict_and_from_safetensors(tmp_path: Path) -> None:
    source = Detector()
    safetensors.torch.save_file(state_of(source), tmp_path / "a.safetensors")
    for checkpoint in (source.state_dict(), tmp_path / "a.safetensors"):
        target = Detector()
        load_detector(target, checkpoint)
        assert_equal(state_of(target), state_of(source))


def test_average_is_preferred() -> None:
    plain, average = Detector(), Detector()
    state = {"model": state_of(plain), "ema": state_of(average)}
    target = Detector()
    assert load_detector(target, state).from_ema
    assert_equal(state_of(target), state_of(average))
    assert not load_detector(target, {"model": state_of(plain), "ema": {}}).from_ema
    assert_equal(state_of(target), state_of(plain))


def test_pretraining_to_detector_drops_the_siblings() -> None:
    source, target = Pretraining(detector=Detector()), Detector()
    report = load_detector(target, {"model": state_of(source)})
    assert_equal(state_of(target), state_of(source.detector))
    assert report.dropped == ("projector.weight", "projector.bias")
    assert "projector.weight, projector.bias" in report.summary()


def test_many_tensors_are_told_by_their_parts() -> None:
    target = Detector()
    beside = {f"target.layer{i}.weight": torch.zeros(1) for i in range(50)}
    state = {"updates": torch.zeros(1), **beside}
    state |= {f"detector.{name}": value for name, value in state_of(target).items()}
    summary = load_detector(target, {"model": state}).summary()
    assert "not taken from the checkpoint (51): updates, target.* (50)" in summary


def test_detector_to_pretraining_leaves_the_siblings_alone() -> None:
    source, target = Detector(), Pretraining(detector=Detector())
    projector = state_of(target.projector)
    report = load_detector(target, {"model": state_of(source)})
    assert_equal(state_of(target.detector), state_of(source))
    assert_equal(state_of(target.projector), projector)
    assert report.untouched == ("projector.weight", "projector.bias")


def test_pretraining_to_pretraining_is_strict_about_siblings() -> None:
    source = Pretraining(detector=Detector())
    target = Pretraining(detector=Detector())
    load_detector(target, source.state_dict())
    assert_equal(state_of(target), state_of(source))
    other = Pretraining(detector=Detector(), out=5)
    with pytest.raises(
        ValueError, match=r"shape: projector\.weight expected \(5, 4\), got \(2, 4\)"
    ):
        load_detector(other, source.state_dict())
    report = load_detector(other, source.state_dict(), reinit=("projector", "class_head"))
    assert set(report.reinitialised) == {
        *(f"detector.class_head.{i}.{n}" for i in (0, 1) for n in ("weight", "bias")),
        "projector.weight",
        "projector.bias",
    }


def test_every_difference_is_named_and_nothing_is_changed() -> None:
    source, target = Detector(num_classes=9), Detector()
    state = state_of(source)
    state["extra.weight"] = torch.zeros(2)
    del state["box_head.bias"]
    before = state_of(target)
    with pytest.raises(ValueError) as caught:
        load_detector(target, state)
    message = str(caught.value)
    for line in (
        "missing: box_head.bias (4,)",
        "unexpected: extra.weight (2,)",
        "shape: class_head.0.weight expected (3, 4), got (9, 4)",
        "shape: class_head.1.bias expected (3,), got (9,)",
        "train.reinit",
    ):
        assert line in message
    assert message.count("\n") == 6
    assert_equal(state_of(target), before)


def test_only_what_reinit_names_may_differ() -> None:
    source, target = Detector(num_classes=9), Detector()
    fresh = copy.deepcopy(target.class_head)
    report = load_detector(target, source.state_dict(), reinit=("class_head",))
    assert_equal(state_of(target.class_head), state_of(fresh))
    assert_equal(state_of(target.box_head), state_of(source.box_head))
    assert_equal(state_of(target.backbone), state_of(source.backbone))
    assert len(report.reinitialised) == 4
    same = Detector()  # a part that would fit starts afresh as well, if it is named
    box = state_of(same.box_head)
    load_detector(same, Detector().state_dict(), reinit=("box_head.weight",))
    assert torch.equal(same.box_head.weight, box["weight"])
    assert not torch.equal(same.box_head.bias, box["bias"])


def test_reinit_covers_parts_that_one_side_lacks() -> None:
    source, target = Detector(), Detector()
    del source.box_head
    source.old_head = nn.Linear(1, 1)
    report = load_detector(target, source.state_dict(), reinit=("box_head", "old_head"))
    assert report.reinitialised == ("box_head.weight", "box_head.bias")
    assert report.dropped == ("old_head.weight", "old_head.bias")


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_backbone_alone_is_taken_where_all_else_is_named_as_fresh(wrapped: bool) -> None:
    """From a model that is a backbone with siblings, into a detector and into what holds one."""
    torch.manual_seed(0)
    source = nn.ModuleDict({"backbone": Detector().backbone, "projector": nn.Linear(4, 9)})
    target: nn.Module = Pretraining(detector=Detector()) if wrapped else Detector()
    before = state_of(target)
    report = load_detector(target, {"model": source.state_dict()}, reinit=("all-but-backbone",))
    prefix = "detector.backbone." if wrapped else "backbone."
    assert report.loaded == tuple(name for name in before if name.startswith(prefix))
    assert len(report.loaded) == 7
    for name, value in state_of(target).items():
        taken = name.startswith(prefix)
        expected = source.state_dict()[name.removeprefix("detector.")] if taken else before[name]
        assert torch.equal(value, expected), name
    assert {name.removeprefix("detector.") for name in report.dropped} == {
        "projector.weight",
        "projector.bias",
    }


def test_a_checkpoint_of_which_only_the_backbone_fits_says_how_it_is_taken() -> None:
    told = r"does not fit the model but for its backbone, which train.reinit=\[all-but-backbone\]"
    source = nn.ModuleDict({"backbone": Detector().backbone, "projector": nn.Linear(4, 9)})
    for target in (Detector(), Pretraining(detector=Detector())):
        with pytest.raises(ValueError, match=told):
            load_detector(target, {"model": source.state_dict()})
    others = (Detector(num_classes=9), Detector(width=8), Detector().box_head)
    for other in others:  # more of it fits, or less
        with pytest.raises(ValueError, match=r"does not fit the model; name in train\.reinit"):
            load_detector(Detector(), other.state_dict())


def test_what_is_taken_alone_is_taken_strictly() -> None:
    wider = {
        "model": {"backbone." + k: v for k, v in Detector(width=8).backbone.state_dict().items()}
    }
    target = Detector()
    before = state_of(target)
    with pytest.raises(ValueError, match=r"shape: backbone\.0\.weight expected \(4, 3, 1, 1\)"):
        load_detector(target, wider, reinit=("all-but-backbone",))
    with pytest.raises(ValueError, match=r"missing: backbone\.0\.weight"):
        load_detector(target, Detector().box_head.state_dict(), reinit=("all-but-backbone",))
    with pytest.raises(ValueError, match=r"reinit names 'bakbone', .*nearest: backbone"):
        load_detector(target, Detector().state_dict(), reinit=("all-but-bakbone",))
    assert_equal(state_of(target), before)


def test_all_but_some_and_named_parts_add_up() -> None:
    source, target = Detector(), Detector()
    before = state_of(target)
    load_detector(
        target,
        source.state_dict(),
        reinit=("all-but-backbone", "all-but-class_head", "class_head.1"),
    )
    for name, value in state_of(target).items():
        fresh = name.startswith(("box_head", "class_head.1"))
        assert torch.equal(value, before[name] if fresh else source.state_dict()[name]), name


def test_counters_of_batch_norms_do_not_matter() -> None:
    """Frozen norms have none; everything else of a norm must fit."""
    frozen = Detector()
    frozen.backbone = freeze_batch_norm(frozen.backbone)
    trained = Detector()
    report = load_detector(frozen, trained.state_dict())
    assert report.dropped == ("backbone.1.num_batches_tracked",)
    assert torch.equal(frozen.backbone[1].weight, trained.backbone[1].weight)
    report = load_detector(Detector(), frozen.state_dict())
    assert report.untouched == ("backbone.1.num_batches_tracked",)
    state = frozen.state_dict()
    del state["backbone.1.running_mean"]
    with pytest.raises(ValueError, match=r"missing: backbone\.1\.running_mean"):
        load_detector(Detector(), state)


def test_a_reinit_that_fits_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"reinit names 'clas_head', .*nearest: class_head"):
        load_detector(Detector(), Detector().state_dict(), reinit=("clas_head",))
    with pytest.raises(ValueError, match="nearest"):  # a prefix of a name is not a module
        load_detector(Detector(), Detector().state_dict(), reinit=("class",))
    with pytest.raises(ValueError, match="list of names"):
        load_detector(Detector(), Detector().state_dict(), reinit="class_head")


def test_weights_are_found_or_the_keys_are_named() -> None:
    with pytest.raises(ValueError, match=r"no weights under 'model'; keys: \['model'\]"):
        weights_of({"model": {}})
    with pytest.raises(ValueError, match="got other values at epoch"):
        weights_of({"epoch": 3, "w": torch.ones(1)})


def test_class_head_is_kept_if_and_only_if_names_agree() -> None:
    state = {"provenance": {"class_names": ["a", "b"]}}
    assert class_names_of(state) == ["a", "b"]
    model = nn.Module()
    assert reinit_for_classes(state, ("a", "b"), model) == ()
    assert reinit_for_classes(state, ("b", "a"), model) == ("class_head",)
    assert reinit_for_classes({}, ("a", "b"), model) == ("class_head",)
    pretrained = {"provenance": {"class_names": ["a", "b"], "head_classes": ["object"]}}
    assert class_names_of(pretrained) == ["a", "b"]
    assert reinit_for_classes(pretrained, ("a", "b"), model) == ("class_head",)
    method = nn.Module()
    method.detector = model
    model.class_layers = ("head.last", "head.boxes")
    assert reinit_for_classes(state, ("b", "a"), method) == ("head.last", "head.boxes")
    assert reinit_for_classes(state, ("a", "b"), method) == ()
    assert class_names_of({"provenance": {"class_names": '["a", "b"]'}}) == ["a", "b"]
    assert class_names_of({"model": {}}) is None
