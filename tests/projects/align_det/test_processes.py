"""Two processes train AlignDet together: the same weights, the same copy, negatives of both."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from predet.engine.schedule import WarmupSchedule
from predet.engine.settings import TrainSettings
from predet.engine.step import OptimizerStep
from predet.engine.stopping import StopRequest
from predet.pretext.semantic_targets import KeepClasses
from predet.projects.align_det import AlignDet

HERE = Path(__file__).parent


def helpers(path: Path):
    spec = importlib.util.spec_from_file_location(f"helpers_{path.parent.name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    parts = helpers(HERE.parent / "conftest.py")
    # The second process has one image with fewer boxes, then none at all.
    batches = [parts.build_batch(((64, 96),) * 4, (3, 2, 1, 0), seed=s) for s in range(2)]
    batches[1] = parts.build_batch(((64, 96),) * 4, (3, 2, 0, 0), seed=1)
    two_views = helpers(HERE / "conftest.py").two_views
    found = {}
    for gather in (False, True):
        torch.manual_seed(0)
        model = AlignDet(
            detector=parts.build_detector("deformable_two_stage"),
            semantic_target=KeepClasses(),
            freeze_backbone=False,
            gather_negatives=gather,
        )
        steps = OptimizerStep(
            model=model,
            optimizer=torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]),
            schedule=WarmupSchedule(max_iter=2),
            settings=TrainSettings(max_iter=2, output_dir=folder, device="cpu"),
            stop=StopRequest(),
        )
        steps.wrap()
        losses = []
        for step, batch in enumerate(batches):
            own = two_views(batch)[2 * rank : 2 * rank + 2]
            losses.append(float(steps.run(step, [own]).losses["loss_contrast"]))
        found[gather] = {"losses": losses, "state": model.state_dict()}
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_stay_the_same(tmp_path):
    torch.multiprocessing.spawn(train, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for gather in (False, True):
        states = [found[gather]["state"] for found in (first, second)]
        assert all(value.equal(states[1][name]) for name, value in states[0].items())
        assert int(states[0]["updates"]) == 2
    assert second[False]["losses"][1] == 0  # no box, yet it took part
    for found in (first, second):  # more negatives, a larger loss
        assert found[True]["losses"][0] > found[False]["losses"][0] + 0.1
