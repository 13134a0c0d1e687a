"""AlignDet around every detector of the DETR family: what it learns, what it keeps, bad input."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from predet.checkpoint import load_detector
from predet.engine import load_replay, replay
from predet.engine.schedule import WarmupSchedule
from predet.engine.settings import TrainSettings
from predet.engine.step import OptimizerStep
from predet.engine.stopping import StopRequest
from predet.modeling.matcher import Matches
from predet.modeling.outputs import DetectorOutput
from predet.modeling.set_regions import set_regions
from predet.pretext.semantic_targets import Objectness
from predet.projects.align_det import modeling
from predet.projects.align_det.contrast import instance_contrast
from predet.projects.align_det.momentum import momentum_at


def test_queries_know_the_boxes_that_they_are_matched_to():
    hidden = torch.arange(2 * 2 * 3, dtype=torch.float32).view(2, 2, 3, 1)
    output = DetectorOutput(hidden, hidden, hidden)
    matches = Matches(
        image=torch.tensor([0, 0, 1]),
        query=torch.tensor([[2, 0, 1], [1, 2, 0]]),
        target=torch.tensor([[0, 1, 2], [1, 0, 2]]),
    )
    regions = set_regions(output, matches, {}, max_regions=None)
    assert regions.features[:, 0].tolist() == list(range(12))
    wanted = [1, -1, 0, -1, 2, -1, -1, 1, 0, 2, -1, -1]  # layer by layer, image by image
    assert regions.instances.tolist() == wanted
    assert regions.slots.tolist() == [0] * 12
    few = set_regions(output, matches, {}, max_regions=8)
    assert sorted(few.instances.tolist()) == [-1, -1, 0, 0, 1, 1, 2, 2]
    assert all(wanted[int(f)] == i for f, i in zip(few.features[:, 0], few.instances, strict=True))


def test_losses_are_those_of_the_detector_and_the_contrast(any_detector, views, method):
    data = views()
    model = method(any_detector)
    losses = model(data)
    plain = any_detector.train()(data)
    assert set(losses) == {*plain, "loss_contrast"}
    for name, loss in plain.items():
        torch.testing.assert_close(losses[name], loss, msg=name)
    others = [{**sample, **sample["views"][1]} for sample in data]
    online, target = (any_detector.regions(batch) for batch in (data, others))
    count = sum(len(sample["instances"]) for sample in data)
    layers = online.instances[online.instances >= 0].bincount()
    assert layers.tolist() == [3] * count
    embedded = [model.projector(r.features, r.slots) for r in (online, target)]
    expected = instance_contrast(embedded[0], online.instances, embedded[1], target.instances)
    torch.testing.assert_close(losses["loss_contrast"], expected, atol=1e-5, rtol=1e-5)
    assert expected > 1


def test_what_is_compared_with_comes_from_the_copy(detector, views, method):
    data, model = views(), method(detector("detr"))
    before = model(data)["loss_contrast"]  # the copy is made
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.target.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    found = model(data)["loss_contrast"]
    second = [{**sample, **sample["views"][1]} for sample in data]
    online = model.detector.regions(data)
    target = model.target["detector"].regions(second)
    expected = instance_contrast(
        model.projector(online.features, online.slots),
        online.instances,
        model.target["projector"](target.features, target.slots),
        target.instances,
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert abs(found - before) > 1e-3


def test_temperature_and_negatives_of_others_count(detector, views, method, monkeypatch):
    data, plain = views(), detector("detr").train()
    model = method(plain, temperature=0.2, gather_negatives=True)
    given, others = [], torch.randn(5, 256)
    monkeypatch.setattr(modeling, "of_other_processes", lambda own: given.append(own) or others)
    found = model(data)["loss_contrast"]
    second = [{**sample, **sample["views"][1]} for sample in data]
    online, target = (plain.regions(batch) for batch in (data, second))
    embedded = [model.projector(r.features, r.slots) for r in (online, target)]
    torch.testing.assert_close(given[0], torch.cat(embedded), atol=1e-5, rtol=1e-5)
    expected = instance_contrast(
        embedded[0],
        online.instances,
        embedded[1],
        target.instances,
        temperature=0.2,
        others=others,
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_everything_is_trained_but_the_copy(any_detector, views, method):
    model = method(any_detector)
    sum(model(views()).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith("target."), name
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_a_frozen_backbone_is_shared_and_gets_no_gradient(detector, views, method):
    model = method(detector("deformable", norm="frozen_bn"), freeze_backbone=True)
    assert model.target["detector"].backbone is model.detector.backbone
    assert not model.detector.backbone.training
    sum(model(views()).values()).backward()
    assert all(p.grad is None for p in model.detector.backbone.parameters())
    assert model.detector.input_proj[0][0].weight.grad.any()
    trained = method(detector("deformable", norm="frozen_bn"))
    assert trained.target["detector"].backbone is not trained.detector.backbone


def test_frozen_by_itself_only_where_weights_are_given(detector, method):
    given = detector("detr", norm="frozen_bn")
    assert not method(given, freeze_backbone="auto").backbone_is_frozen
    given.backbone.pretrained = True
    assert method(given, freeze_backbone="auto").backbone_is_frozen
    with pytest.raises(ValueError, match="does not tell whether its weights are pre-trained"):
        method(detector("detr"), freeze_backbone="auto")


def test_an_image_without_boxes_and_a_batch_of_one_work(any_detector, views, method):
    model = method(any_detector)
    for counts in ((0, 2, 0), (0, 0, 0)):
        total = sum(model(views(counts=counts)).values())
        total.backward()
        assert total.isfinite()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    losses = model(views(sizes=((64, 96),), counts=(2,)))
    assert 0 < float(losses["loss_contrast"].detach()) < 20


def test_views_that_do_not_fit_are_refused(detector, views, batch, method):
    model = method(detector("detr"))
    with pytest.raises(ValueError, match="image 0 of the batch: AlignDet needs two 'views'"):
        model(batch())
    data = views()
    data[1]["file_name"] = "b.jpg"
    data[1]["views"][1]["instances"] = data[0]["instances"]
    with pytest.raises(ValueError, match=r"b\.jpg: expected two views .* \[1, 4\]: a proposal"):
        model(data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"loss_contrast": 1.0}}, "weights: expected loss_contrast and detection"),
        ({"weights": {"loss_contrast": 0.0, "detection": 0.0}}, "nor"),
        ({"temperature": 0}, "temperature > 0"),
        ({"base_momentum": 1.5}, r"base_momentum in \[0, 1\]"),
    ],
)
def test_options_out_of_range_are_refused(detector, method, options, message):
    with pytest.raises(ValueError, match=message):
        method(detector("detr"), **options)


def test_one_side_alone(detector, views, method):
    data, base = views(), detector("detr")
    both = method(base)(data)
    contrast = method(base, weights={"loss_contrast": 2.0, "detection": 0.0})(data)
    boxes = method(base, weights={"loss_contrast": 0.0, "detection": 1.0})(data)
    for name, loss in both.items():
        is_contrast = name == "loss_contrast"
        torch.testing.assert_close(contrast[name], (2.0 if is_contrast else 0.0) * loss)
        torch.testing.assert_close(boxes[name], (0.0 if is_contrast else 1.0) * loss)


def test_objectness_alone(detector, views, method):
    """Classes that the detector does not have are of no concern then."""
    data = views()
    for sample in data:
        for view in sample["views"]:
            view["instances"].gt_classes += 300
    model = method(detector("deformable", num_classes=1), semantic_target=Objectness())
    assert sum(model(data).values()).isfinite()
    assert model.taught_classes(["cluster_1", "cluster_2"]) == ("object",)


def step_of(model: nn.Module, tmp_path, steps: int) -> OptimizerStep:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return OptimizerStep(
        model=model,
        optimizer=torch.optim.AdamW(parameters, lr=1e-3),
        schedule=WarmupSchedule(max_iter=steps),
        settings=TrainSettings(max_iter=steps, output_dir=str(tmp_path), device="cpu"),
        stop=StopRequest(),
    )


def test_copy_begins_at_given_weights_and_follows_each_update(detector, views, method, tmp_path):
    """Also where a step has several micro-batches: one update a step."""
    model = method(detector("detr"), base_momentum=0.9)
    torch.manual_seed(5)
    load_detector(model, {"model": detector("detr").state_dict()})
    steps = step_of(model, tmp_path, 3)
    steps.wrap()
    average = {n: p.detach().double() for n, p in model.detector.named_parameters()}
    for step in range(3):
        steps.run(step, [views(seed=step), views(seed=10 + step)])
        momentum = momentum_at(step, 3, base=0.9)
        for name, parameter in model.detector.named_parameters():
            now = parameter.detach().double()
            average[name] = momentum * average[name] + (1 - momentum) * now
            if name == "query_embed.weight":
                average[name] = now
    assert int(model.updates) == 3
    for name, parameter in model.target["detector"].named_parameters():
        torch.testing.assert_close(parameter.double(), average[name], atol=1e-6, rtol=1e-5)
    moved = model.detector.class_head.weight - model.target["detector"].class_head.weight
    assert moved.abs().max() > 1e-4


def test_going_on_from_a_checkpoint_is_exact(detector, views, method, tmp_path):
    start = detector("deformable_two_stage")
    whole = method(start)
    steps = step_of(whole, tmp_path, 3)
    steps.wrap()
    for step in range(3):
        if step == 2:
            kept = copy.deepcopy(whole.state_dict())
            optimizer = copy.deepcopy(steps.optimizer.state_dict())
        steps.run(step, [views(seed=step)])
    again = method(detector("deformable_two_stage"))
    again.load_state_dict(kept)
    steps = step_of(again, tmp_path, 3)
    steps.optimizer.load_state_dict(optimizer)
    steps.wrap()
    steps.run(2, [views(seed=2)])
    other = again.state_dict()
    assert all(value.equal(other[name]) for name, value in whole.state_dict().items())


def test_nan_features_end_the_step_with_the_images_named(detector, views, method, tmp_path):
    model = method(detector("detr"))
    with torch.no_grad():
        model.projector.output.bias[0] = torch.nan
    data = views()
    data[0]["file_name"] = "a.jpg"
    steps = step_of(model, tmp_path, 2)
    steps.wrap()
    message = r"loss_contrast = nan on images a\.jpg, .*replay bundle"
    with pytest.raises(FloatingPointError, match=message):
        steps.run(0, [data])
    assert int(model.updates) == 0
    (bundle,) = (tmp_path / "replay").iterdir()
    (losses,) = replay(load_replay(bundle), method(detector("detr")))
    assert [name for name, loss in losses.items() if math.isnan(loss)] == ["loss_contrast"]


def test_only_the_detector_survives_with_or_without_its_last_layers(any_detector, method):
    model = method(any_detector)
    fresh = copy.deepcopy(any_detector)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    last = copy.deepcopy(fresh)
    report = load_detector(fresh, {"model": model.state_dict()})
    assert all(p.equal(fresh.state_dict()[n]) for n, p in any_detector.state_dict().items())
    assert {name.split(".")[0] for name in report.dropped} == {"projector", "target", "updates"}
    report = load_detector(last, {"model": model.state_dict()}, reinit=["last-layers"])
    layers = (
        len(any_detector.class_head) if isinstance(any_detector.class_head, nn.ModuleList) else 1
    )
    assert len(report.reinitialised) == 4 * layers  # weight and bias of classes and of boxes
    for name, value in last.state_dict().items():
        is_last = name.startswith("class_head") or (
            name.startswith("box_head") and ".layers.2." in f".{name}"
        )
        assert (name in report.reinitialised) == is_last
        if value.is_floating_point() and any_detector.state_dict()[name].any():
            assert value.any() != is_last, name


def test_last_layers_need_a_detector_that_tells(detector):
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="Linear does not tell which these are"):
        load_detector(model, {"model": model.state_dict()}, reinit=["last-layers"])


def test_detects_as_its_detector(any_detector, batch, method):
    model = method(any_detector).eval()
    any_detector.eval()
    with torch.no_grad():
        found, expected = model(batch()), any_detector(batch())
    for one, other in zip(found, expected, strict=True):
        assert one["instances"].scores.equal(other["instances"].scores)


@pytest.mark.parametrize("name", ["detr", "deformable_two_stage"])
def test_contrast_can_be_learned(detector, views, method, name, tmp_path):
    """A few steps on one batch tell its instances apart."""
    torch.manual_seed(0)
    model = method(detector(name), weights={"loss_contrast": 1.0, "detection": 0.2})
    steps = step_of(model, tmp_path, 25)
    steps.wrap()
    data = views(sizes=((64, 64),) * 2, counts=(3, 3))
    losses = [float(steps.run(step, [data]).losses["loss_contrast"]) for step in range(25)]
    assert losses[-1] < losses[0] - 0.25  # of 5.5: negatives are many and the temperature is high
