"""Two processes train as one, also when one of them has no targets."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

from predet.modeling import criterion as criterion_module
from predet.modeling.criterion import average_num_boxes
from predet.modeling.targets import Targets


def helpers():
    path = Path(__file__).parent / "conftest.py"
    spec = importlib.util.spec_from_file_location("predet_project_helpers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_detector(name: str, module) -> torch.nn.Module:
    torch.manual_seed(3)
    return module.build_detector(name)


def data(module) -> list[dict]:
    """Four images of one size; the last two, those of the second process, have no targets."""
    return module.build_batch(sizes=((64, 96),) * 4, counts=(3, 1, 0, 0))


def train_one_step(rank: int, folder: str, names: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    module = helpers()
    found = {}
    for name in names:
        detector = make_detector(name, module)
        parallel = DistributedDataParallel(detector)  # waits forever for unused parameters
        for _ in range(2):
            parallel.zero_grad()
            losses = parallel(data(module)[2 * rank : 2 * rank + 2])
            sum(losses.values()).backward()
        found[name] = {key: p.grad for key, p in detector.named_parameters()}
    if rank == 1:
        torch.save(found, f"{folder}/gradients.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_gradients_of_one(tmp_path):
    """Exact for the focal loss, whose normaliser is the boxes of all processes."""
    names = ("deformable_refine", "deformable_two_stage", "h_deformable")
    torch.multiprocessing.spawn(train_one_step, (str(tmp_path), names), nprocs=2)
    found = torch.load(tmp_path / "gradients.pt")
    module = helpers()
    for name in names:
        detector = make_detector(name, module)
        sum(detector(data(module)).values()).backward()
        for key, parameter in detector.named_parameters():
            scale = parameter.grad.abs().max() + 1e-6
            error = (found[name][key] - parameter.grad).abs().max() / scale
            assert error < 1e-3, f"{name} {key}: {error}"


def test_boxes_are_averaged_over_processes(monkeypatch):
    def targets(*counts: int) -> Targets:
        total = sum(counts)
        return Targets(torch.zeros(total, dtype=torch.long), torch.zeros(total, 4), counts)

    cpu = torch.device("cpu")
    assert average_num_boxes(targets(2, 5), cpu) == 7
    assert average_num_boxes(targets(0, 0), cpu) == 1
    distributed = criterion_module.torch.distributed
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 4)
    monkeypatch.setattr(distributed, "all_reduce", lambda total: total.add_(11))
    assert average_num_boxes(targets(2, 5), cpu) == pytest.approx(18 / 4)
    monkeypatch.setattr(distributed, "all_reduce", lambda total: None)
    assert average_num_boxes(targets(0, 3), cpu) == 1
