"""The option `train.compile` at work: several processes, average, names, evaluation."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.multiprocessing

from predet.engine.optim import parameter_groups
from predet.engine.schedule import WarmupSchedule
from predet.engine.settings import TrainSettings
from predet.engine.step import OptimizerStep, compile_parts
from predet.engine.stopping import StopRequest
from predet.pretext.semantic_targets import KeepClasses
from predet.projects.self_training import SelfTraining


def helpers():
    path = Path(__file__).parent / "conftest.py"
    spec = importlib.util.spec_from_file_location("predet_project_helpers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(name: str, folder: str, *, compiled: bool, checkpointing: bool, rank: int = 0) -> dict:
    """Three steps on this process's share; weights, averaged weights, detections."""
    module = helpers()
    torch.manual_seed(3)
    detector = module.build_detector(name)
    detector.transformer.checkpointing = checkpointing
    steps = OptimizerStep(
        model=detector,
        optimizer=torch.optim.SGD(parameter_groups(model=detector), lr=1e-3),
        schedule=WarmupSchedule(max_iter=10),
        settings=TrainSettings(
            max_iter=10, output_dir=folder, compile=compiled, ema_decay=0.5, clip_grad_norm=1.0
        ),
        stop=StopRequest(),
    )
    steps.wrap()
    for step, sizes in enumerate((((64, 96),) * 2, ((80, 96),) * 2, ((72, 90),) * 2)):
        batch = module.build_batch(sizes=sizes, counts=(3, 1), seed=10 * step + rank)
        steps.run(step, [batch])
    detector.eval()
    with torch.no_grad():
        detections = detector(module.build_batch(sizes=((64, 96),), counts=(1,)))
    return {
        "model": detector.state_dict(),
        "ema": steps.ema.state_dict(),
        "scores": detections[0]["instances"].scores,
        "compiled": detector._compiled is not None,
    }


def equal_with_and_without(name: str, folder: str, *, checkpointing: bool, rank: int = 0) -> None:
    torch._dynamo.reset()
    plain = train(name, folder, compiled=False, checkpointing=checkpointing, rank=rank)
    found = train(name, folder, compiled=True, checkpointing=checkpointing, rank=rank)
    assert found.pop("compiled")
    assert not plain.pop("compiled")
    assert found["model"].keys() == plain["model"].keys()
    assert not any("_orig_mod" in key for key in found["ema"])
    for part in ("model", "ema"):
        for key, value in plain[part].items():
            torch.testing.assert_close(found[part][key], value, rtol=1e-4, atol=1e-6, msg=key)
    torch.testing.assert_close(found["scores"], plain["scores"], rtol=1e-4, atol=1e-5)


def run_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    # What is tested is what is compiled, and where; code generation takes minutes.
    with mock.patch.object(torch, "compile", functools.partial(torch.compile, backend="eager")):
        for checkpointing in (False, True):
            equal_with_and_without(
                "deformable_two_stage", folder, checkpointing=checkpointing, rank=rank
            )
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_compiled_as_they_train_otherwise(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(run_process, (str(tmp_path),), nprocs=2)


@pytest.mark.slow
def test_one_process_trains_compiled_as_it_trains_otherwise(tmp_path: Path) -> None:
    with mock.patch.object(torch, "compile", functools.partial(torch.compile, backend="eager")):
        equal_with_and_without("detr", str(tmp_path), checkpointing=False)


def test_the_detector_inside_of_a_method_is_compiled() -> None:
    detector = helpers().build_detector("detr")
    model = SelfTraining(detector=detector, semantic_target=KeepClasses(), freeze_backbone=False)
    names = list(model.state_dict())
    compile_parts(model)
    assert detector._compiled is not None
    assert model._compiled_call_impl is None  # not the whole forward, which has matching in it
    assert list(model.state_dict()) == names
    plain = torch.nn.Linear(2, 2)
    compile_parts(plain)
    assert plain._compiled_call_impl is not None
