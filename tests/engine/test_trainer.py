"""One step and one run of the trainer, against loops written by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from engine_standins import TinyDetector, TinyLoader, WithSiblings, tiny_dataset, tiny_item

from predet.checkpoint import read_checkpoint
from predet.engine import NonFiniteError, TrainSettings, WarmupSchedule, load_replay, replay
from predet.engine.distributed import seed_all
from predet.engine.metrics import History, Window, group_losses, progress_line, result_table
from predet.engine.step import OptimizerStep
from predet.engine.stopping import StopRequest


def make_step(model, optimizer=None, output: Path | str = "unused", **settings) -> OptimizerStep:
    settings = TrainSettings(max_iter=100, output_dir=str(output), device="cpu", **settings)
    steps = OptimizerStep(
        model=model,
        optimizer=optimizer or torch.optim.SGD(model.parameters(), lr=0.1),
        schedule=WarmupSchedule(max_iter=100),
        settings=settings,
        stop=StopRequest(),
    )
    steps.wrap()
    return steps


def make_model(dropout: float = 0.0, norm: bool = True) -> TinyDetector:
    torch.manual_seed(1)
    return TinyDetector(num_classes=2, dropout=dropout, norm=norm)


def same_boxes(count: int) -> list[dict]:
    """Images with one box each, so that every batch has the same normaliser an image."""
    dataset = tiny_dataset(60)
    chosen = [i for i in range(60) if len(dataset[i].boxes) == 1][:count]
    assert len(chosen) == count
    return [tiny_item(dataset, i, 0) for i in chosen]


def test_run_equals_a_loop_by_hand(run_tiny, load_tiny, tmp_path: Path) -> None:
    """Seeds, warm-up, drop, factor of the backbone, clipping, AdamW: all of it, to the bit."""
    run_tiny()
    dataset = tiny_dataset()
    seed_all(3)
    model = TinyDetector(num_classes=2)
    backbone = list(model.backbone.parameters())
    heads = [*model.class_head.parameters(), *model.box_head.parameters()]
    optimizer = torch.optim.AdamW([{"params": backbone}, {"params": heads}], weight_decay=1e-2)
    batches = TinyLoader(dataset=dataset, seed=3).batches(0)
    for step, batch in zip(range(20), batches, strict=False):
        multiplier = 0.001 + 0.999 * step / 3 if step < 3 else (1.0 if step < 15 else 0.1)
        for group, factor in zip(optimizer.param_groups, (0.5, 1.0), strict=True):
            group["lr"] = 1e-2 * multiplier * factor
        seed_all(3, step, 0)
        optimizer.zero_grad()
        losses = model(batch)
        (losses["loss_class"] + losses["loss_class_0"] + losses["loss_bbox"]).backward()
        torch.nn.utils.clip_grad_norm_([*backbone, *heads], 0.1)
        optimizer.step()
    trained = read_checkpoint(tmp_path / "run/checkpoints/last.pth")["model"]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradient_is_clipped_and_its_norm_reported(precision: str) -> None:
    """Of fp16 the true gradient, not the scaled one."""
    norms = []
    for largest in (0.05, None):
        model = make_model()
        steps = make_step(model, clip_grad_norm=largest, precision=precision)
        if precision == "fp16":  # the first scale is for larger models: here it overflows
            steps.precision.load_state_dict({**steps.precision.state_dict(), "scale": 64.0})
        result = steps.run(0, [same_boxes(4)])
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
        norms.append((float(result.grad_norm), norm))
    (reported, clipped), (free, norm) = norms
    assert clipped == pytest.approx(0.05, rel=1e-3)
    assert free == pytest.approx(norm, rel=1e-5)
    assert reported == pytest.approx(norm, rel=1e-5)
    assert norm > 0.1


def test_average_is_of_the_weights_after_each_update() -> None:
    model = make_model()
    steps = make_step(model, ema_decay=0.75)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(3):
        steps.run(step, [same_boxes(2)])
        for name, parameter in model.named_parameters():
            expected[name] = 0.75 * expected[name] + 0.25 * parameter.detach()
    for name, value in steps.ema.model.named_parameters():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_trains_with_fp32_weights(precision: str) -> None:
    seen = set()
    model = make_model()
    model.class_head.register_forward_hook(lambda m, inputs, output: seen.add(output.dtype))
    steps = make_step(model, precision=precision)
    first = float(steps.run(0, [same_boxes(4)]).losses["loss"])
    for step in range(1, 15):
        last = float(steps.run(step, [same_boxes(4)]).losses["loss"])
    assert seen == {torch.bfloat16 if precision == "bf16" else torch.float16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert last < 0.9 * first


def test_fp16_overflow_skips_the_step_and_halves_the_scale() -> None:
    model = make_model()
    steps = make_step(model, precision="fp16")
    scale = steps.precision.state_dict()["scale"]
    before = [p.detach().clone() for p in model.parameters()]
    model.box_head.bias.register_hook(lambda grad: grad * torch.inf)
    steps.run(0, [same_boxes(2)])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert steps.precision.state_dict()["scale"] == scale / 2
    with pytest.raises(FloatingPointError, match="bf16 or fp32"):
        _ = [steps.run(step, [same_boxes(2)]) for step in range(1, 60)]


def test_nan_stops_before_the_update_and_can_be_replayed(run_tiny, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError) as caught:
        run_tiny("dataloader.train.nan_at=11", "train.accumulation_steps=2")
    message = str(caught.value)
    assert "step 5:" in message  # batch 11 is the second of step 5
    assert "loss_class = nan" in message
    assert ".png" in message
    (path,) = (tmp_path / "run/replay").iterdir()
    assert str(path) in message
    bundle = load_replay(path)
    assert (bundle["step"], bundle["seed"], bundle["rank"]) == (5, 3, 0)
    assert len(bundle["batches"]) == 2
    assert all(key in message for key in bundle["keys"])
    saved = read_checkpoint(tmp_path / "run/checkpoints/last.pth")  # of step 5: nothing since
    for name, value in saved["model"].items():
        if "norm" not in name:  # running statistics have seen the batch
            assert torch.equal(value, bundle["model"][name]), name
    losses = replay(bundle, make_model(dropout=0.1))
    assert losses[0] == pytest.approx(bundle["losses"][0])  # the good one, dropout and all
    assert math.isnan(losses[1]["loss_class"])


def test_infinite_gradient_stops_too(tmp_path: Path) -> None:
    model = make_model()
    model.box_head.bias.register_hook(lambda grad: grad * torch.inf)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(NonFiniteError, match=r"gradient norm = (inf|nan)"):
        make_step(model, output=tmp_path).run(7, [same_boxes(2)])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert (tmp_path / "replay/step_00000007_rank0.pth").exists()


def test_an_error_inside_the_model_names_the_images(tmp_path: Path, caplog) -> None:
    batch = same_boxes(2)
    batch[1]["image"] = batch[1]["image"][:, :4]  # does not stack
    with pytest.raises(RuntimeError, match="stack"):
        make_step(make_model(), output=tmp_path).run(2, [batch])
    assert batch[1]["key"] in caplog.text
    assert "step_00000002_rank0.pth" in caplog.text


def test_images_without_targets_train(run_tiny) -> None:
    run_tiny("dataloader.train.empty_ranks=[0]", "train.max_iter=3", "dataloader.test=null")


def test_channels_last_trains_the_same_model(run_tiny, tmp_path: Path) -> None:
    options = ["train.max_iter=3", "train.log_period=1", "dataloader.test=null", "model.dropout=0"]
    run_tiny(*options, output="plain")
    run_tiny(*options, "train.channels_last=True", output="last")
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("plain", "last")
    ]
    for plain, last in zip(*rows, strict=True):
        assert plain["loss"] == pytest.approx(last["loss"], rel=1e-3)
    weight = read_checkpoint(tmp_path / "last/checkpoints/last.pth")["model"][
        "backbone.conv.weight"
    ]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


def test_compiled_model_keeps_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    names = list(model.state_dict())
    called = []
    monkeypatch.setattr(torch, "compile", lambda f, *a, **k: (called.append(f), f)[1])
    steps = make_step(model, compile=True)
    steps.run(0, [same_boxes(2)])
    assert called
    assert list(steps.model.state_dict()) == names


def test_best_checkpoint_is_the_best_evaluation(run_tiny, tmp_path: Path) -> None:
    run_tiny()
    rows = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    evaluations = {row["step"]: row["AP"] for row in rows if "AP" in row}
    assert list(evaluations) == [8, 16, 20]
    best_step = max(evaluations, key=evaluations.get)
    state = read_checkpoint(tmp_path / "run/checkpoints/best.pth")
    assert state["step"] == best_step
    assert state["best"] == {"metric": "AP", "value": evaluations[best_step], "step": best_step}
    assert "optimizer" not in state
    assert state["provenance"]["class_names"] == ["a", "b"]
    summary = json.loads((tmp_path / "run/results.json").read_text())
    assert summary["step"] == 20
    assert summary["results"]["AP"] == evaluations[20]


def with_results(monkeypatch: pytest.MonkeyPatch, values: list[float], name: str = "AR") -> None:
    """Evaluations give these values of `name`, one after another."""
    from engine_standins import TinyEvaluator

    left = iter(values)
    monkeypatch.setattr(TinyEvaluator, "evaluate", lambda self: {"AP": 0.0, name: next(left)})


@pytest.mark.parametrize(
    ("values", "mode", "best"),
    [
        ([1.0, 3.0, 3.0, 2.0], "max", 8),  # of equal ones the first
        ([1.0, 3.0, 0.5, 0.5], "min", 12),
        ([math.nan, -2.0, math.nan, -3.0], "max", 8),
    ],
)
def test_best_checkpoint_by_name_and_mode(
    run_tiny, tmp_path: Path, monkeypatch, values: list[float], mode: str, best: int
) -> None:
    with_results(monkeypatch, values)
    run_tiny(
        "train.best_metric=AR",
        f"train.best_mode={mode}",
        "train.eval_period=4",
        "train.max_iter=16",
        "train.ema_decay=null",
    )
    state = read_checkpoint(tmp_path / "run/checkpoints/best.pth")
    assert (state["step"], state["best"]["metric"]) == (best, "AR")
    assert json.loads((tmp_path / "run/results.json").read_text())["best"] == state["best"]


def test_best_checkpoint_survives_a_resume(run_tiny, tmp_path: Path, monkeypatch) -> None:
    """The best was before the interruption; what comes after is worse."""
    options = ["train.eval_period=4", "train.max_iter=16", "train.ema_decay=null"]
    options.append("train.checkpoint_period=0")
    with_results(monkeypatch, [5.0, 6.0], name="AP")
    with pytest.raises(StopIteration):  # at step 12
        run_tiny(*options)
    with_results(monkeypatch, [1.0, 2.0], name="AP")
    run_tiny(*options, resume=True)
    assert read_checkpoint(tmp_path / "run/checkpoints/best.pth")["step"] == 8
    summary = json.loads((tmp_path / "run/results.json").read_text())
    assert summary["best"] == {"metric": "AP", "value": 6.0, "step": 8}


def test_an_unknown_metric_is_named_at_the_first_evaluation(run_tiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="best_metric is 'mAP', but the evaluation gives AP, AP/a"):
        run_tiny("train.best_metric=mAP", "train.eval_at=[0]")
    assert not (tmp_path / "run/checkpoints").exists()  # no step has been made
    run_tiny("train.best_metric=null", "train.max_iter=2", output="none")
    assert not (tmp_path / "none/checkpoints/best.pth").exists()


def test_evaluation_before_the_first_step_and_where_asked(run_tiny, tmp_path: Path) -> None:
    run_tiny("train.eval_at=[0,3,16]", output="asked")
    run_tiny(output="plain")
    found = {}
    for name in ("asked", "plain"):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        found[name] = [(row["step"], row.get("AP")) for row in rows if "AP" in row]
    assert [step for step, _ in found["asked"]] == [0, 3, 8, 16, 20]
    assert [pair for pair in found["asked"] if pair[0] in (8, 16, 20)] == found["plain"]
    assert found["asked"][0][1] != found["asked"][1][1]


def test_average_is_evaluated(run_tiny, tmp_path: Path) -> None:
    from engine_standins import TinyEvaluator, TinyTestLoader

    from predet.evaluation import evaluate

    results = run_tiny()
    state = read_checkpoint(tmp_path / "run/checkpoints/last.pth")
    data = tiny_dataset(num_images=5)
    for weights, name in (("ema", "AP"), ("model", "AP (no EMA)")):
        model = make_model()
        model.load_state_dict(state[weights])
        found = evaluate(model, TinyTestLoader(dataset=data), TinyEvaluator(dataset=data))
        assert results[name] == pytest.approx(found["AP"], rel=1e-6)
    assert results["AP"] != results["AP (no EMA)"]


def test_output_folder_holds_everything(run_tiny, tmp_path: Path) -> None:
    from predet.engine import load_config

    run_tiny()
    run = tmp_path / "run"
    names = {path.name for path in run.iterdir()}
    assert {
        "checkpoints",
        "config.resolved.py",
        "metrics.jsonl",
        "results.json",
        "tensorboard",
    } <= names
    assert list((run / "tensorboard").glob("events.*"))
    assert load_config(run / "config.resolved.py").data.num_classes == 2
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    training = [row for row in rows if "loss" in row]
    assert [row["step"] for row in training] == [4, 8, 12, 16, 20]
    for row in training:
        assert row["loss"] == pytest.approx(row["loss_class"] + row["loss_bbox"])
    line = progress_line(training[0], max_iter=20)
    for part in ("step 4/20", "eta 0:", "lr 0.01", "loss ", "class ", "bbox ", "data ", "GB"):
        assert part in line


def test_repeated_losses_are_grouped() -> None:
    losses = {"loss_class": 1.0, "loss_class_0": 2.0, "loss_class_enc": 4.0, "loss_bbox": 8.0}
    losses |= {"loss_bbox_one_to_many_3": 16.0, "loss_reconstruction": 32.0}
    assert group_losses(losses) == {"loss_class": 7, "loss_bbox": 24, "loss_reconstruction": 32}


def test_window_averages_over_steps_and_survives() -> None:
    window = Window()
    for value in (1.0, 2.0):
        window.add({"loss": torch.tensor(value)})
    again = Window()
    again.load_state_dict(window.state_dict())
    again.add({"loss": torch.tensor(6.0)})
    assert again.means() == {"loss": 3.0}


def test_history_is_cut_at_the_resumed_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": s, "loss": 1.0} for s in (2, 4, 6)] + [{"step": 4, "AP": 1.0}]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 8, "lo'
    for evaluated, expected in ((True, [2, 4, 4]), (False, [2, 4])):
        path.write_text(text)
        history = History(tmp_path, step=4, evaluated=evaluated)
        assert [json.loads(x)["step"] for x in path.read_text().splitlines()] == expected
        history.write({"step": 6, "loss": math.nan}, {})
        history.close()
        assert json.loads(path.read_text().splitlines()[-1]) == {"step": 6, "loss": None}


def test_result_table_names_everything() -> None:
    text = result_table({"AP": 12.345, "AP50": 30.0, "AP/red cell": 1.5})
    assert text.splitlines() == ["AP 12.35  AP50 30.00", "  AP/red cell  1.50"]


def test_initial_weights_are_loaded_by_the_rules(run_tiny, load_tiny, tmp_path, caplog) -> None:
    run_tiny("train.max_iter=5", output="first")
    path = tmp_path / "first/checkpoints/last.pth"
    start = [f"train.init_checkpoint={path}", "train.max_iter=1", "optimizer.lr=1e-12"]
    run_tiny(*start, output="second")
    wanted = read_checkpoint(path)["ema"]
    found = read_checkpoint(tmp_path / "second/checkpoints/last.pth")["model"]
    torch.testing.assert_close(found["class_head.weight"], wanted["class_head.weight"])
    other = ["dataloader.train.dataset.class_names=[b,a]", "dataloader.test=null"]
    with caplog.at_level("INFO"):
        run_tiny(*start, *other, "train.reinit=auto", output="third")
    assert "re-initialised (2): class_head.weight, class_head.bias" in caplog.text
    run_tiny(*start, "train.reinit=auto", output="fourth")
    found = read_checkpoint(tmp_path / "fourth/checkpoints/last.pth")["model"]
    torch.testing.assert_close(found["class_head.weight"], wanted["class_head.weight"])
    with pytest.raises(
        ValueError, match=r"shape: class_head\.weight expected \(3, 8\), got \(2, 8\)"
    ):
        run_tiny(*start, "dataloader.train.dataset.class_names=[a,b,c]", "dataloader.test=null")


def test_test_data_must_have_the_same_classes(run_tiny) -> None:
    with pytest.raises(ValueError, match="test data 'tiny' has the classes"):
        run_tiny("dataloader.test.dataset.class_names=[b,a]")


def test_an_empty_data_set_is_refused(run_tiny) -> None:
    with pytest.raises(ValueError, match="'tiny' has no images"):
        run_tiny("dataloader.train.dataset.num_images=0")


def test_pretraining_then_fine_tuning(tmp_path: Path) -> None:
    """What survives a pre-training run is the detector."""
    from predet.checkpoint import load_detector, save_checkpoint

    pretraining = WithSiblings(detector=make_model())
    save_checkpoint(tmp_path / "pre.pth", {"model": pretraining.state_dict()})
    detector = TinyDetector(num_classes=5)
    report = load_detector(detector, tmp_path / "pre.pth", reinit=("class_head",))
    assert torch.equal(detector.box_head.weight, pretraining.detector.box_head.weight)
    assert report.dropped[:2] == ("projector.weight", "projector.bias")


@pytest.mark.parametrize("target", ["KeepClasses", "Objectness"])
def test_a_head_that_has_learned_objectness_starts_afresh(
    run_tiny, tmp_path: Path, caplog, target: str
) -> None:
    """The class names agree; what the head has been taught does not."""
    from predet.d2 import LazyCall
    from predet.engine.build import load_for_evaluation
    from predet.pretext import semantic_targets
    from predet.projects.self_training import SelfTraining

    detector = LazyCall(TinyDetector)(num_classes="${data.num_classes}")
    target_call = LazyCall(getattr(semantic_targets, target))()
    pretraining = LazyCall(SelfTraining)(
        detector=detector, semantic_target=target_call, freeze_backbone=False
    )
    run_tiny("train.max_iter=4", output="pre", model=pretraining)
    path = tmp_path / "pre/checkpoints/last.pth"
    state = read_checkpoint(path)
    knows = ["a", "b"] if target == "KeepClasses" else ["object"]
    assert state["provenance"]["class_names"] == ["a", "b"]
    assert state["provenance"]["head_classes"] == knows
    start = [f"train.init_checkpoint={path}", "train.reinit=auto", "optimizer.lr=1e-12"]
    with caplog.at_level("INFO"):
        run_tiny(*start, "train.max_iter=1", output="fine")
    found = read_checkpoint(tmp_path / "fine/checkpoints/last.pth")["model"]
    kept = torch.allclose(found["class_head.weight"], state["ema"]["detector.class_head.weight"])
    assert kept == (target == "KeepClasses")
    assert ("re-initialised (2): class_head.weight" in caplog.text) == (not kept)
    if target == "Objectness":
        settings = TrainSettings(max_iter=1, init_checkpoint=str(path))
        with pytest.raises(ValueError, match=r"knows the classes \['object'\]"):
            load_for_evaluation(make_model(), settings, ["a", "b"])
