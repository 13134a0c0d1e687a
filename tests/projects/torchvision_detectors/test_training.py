"""They learn, in one process and in two, and serve as student and as teacher."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

from predet.pretext.semantic_targets import Objectness
from predet.projects.self_training import SelfTraining
from predet.projects.self_training.labelling import label_images


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet", "fcos", "faster_rcnn"])
def test_a_few_steps_learn_an_image_by_heart(name, parts):
    torch.manual_seed(0)
    model = parts.build(name).train()
    batch = [parts.sample((64, 96), [[4, 4, 40, 50], [50, 20, 90, 60]], [0, 2])] * 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = sum(model(batch).values())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:2]), losses


def test_halves_of_a_batch_have_the_loss_of_the_whole_in_the_mean(parts):
    """RetinaNet's, whatever numbers of boxes the halves have: decision 10 holds."""
    torch.manual_seed(0)
    model = parts.build("retinanet").train()
    boxes = [[4, 4, 40, 50], [50, 20, 90, 60], [2, 30, 20, 44]]
    batch = [parts.sample((64, 96), boxes[:count], [0, 2, 1][:count]) for count in (3, 1, 0, 1)]
    whole = model(batch)
    halves = [model(batch[:2]), model(batch[2:])]
    for key, value in whole.items():
        torch.testing.assert_close(sum(half[key] for half in halves) / 2, value, msg=key)


def train_two_steps(rank: int, folder: str, names: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    parts = helpers()
    for name in names:
        torch.manual_seed(0)
        model = parts.build(name).train()
        parallel = DistributedDataParallel(model)  # waits forever for unused parameters
        for _ in range(2):
            parallel.zero_grad()
            torch.manual_seed(rank)
            losses = parallel(parts.make_batch()[1 + rank : 2 + rank])  # rank 0 has no boxes
            sum(losses.values()).backward()
        torch.save({n: p.grad for n, p in model.named_parameters()}, f"{folder}/{name}{rank}.pt")
    torch.distributed.destroy_process_group()


def helpers():
    path = Path(__file__).parent / "conftest.py"
    spec = importlib.util.spec_from_file_location("predet_torchvision_helpers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_processes_average_their_gradients(tmp_path):
    """Also where one has no boxes, and where nobody has masks."""
    names = ("retinanet", "mask_rcnn")
    torch.multiprocessing.spawn(train_two_steps, (str(tmp_path), names), nprocs=2)
    parts = helpers()
    for name in names:
        torch.manual_seed(0)
        model = parts.build(name).train()
        for rank in range(2):
            torch.manual_seed(rank)
            losses = model(parts.make_batch()[1 + rank : 2 + rank])
            (sum(losses.values()) / 2).backward()
        for rank in range(2):
            found = torch.load(tmp_path / f"{name}{rank}.pt")
            for key, parameter in model.named_parameters():
                scale = parameter.grad.abs().max() + 1e-6
                assert (found[key] - parameter.grad).abs().max() < 1e-3 * scale, f"{name} {key}"


@pytest.mark.parametrize("name", ["fcos", "faster_rcnn"])
def test_they_are_trained_on_pseudo_labels(name, parts):
    torch.manual_seed(0)
    detector = parts.build(name, num_classes=1)
    method = SelfTraining(
        detector=detector, semantic_target=Objectness(), freeze_backbone=True
    ).train()
    losses = method(parts.make_batch())  # of three classes, all taken as objects
    sum(losses.values()).backward()
    assert all(p.grad is None for p in detector.backbone.parameters())
    rest = [p for n, p in detector.named_parameters() if not n.startswith("backbone.")]
    assert all(p.grad is not None for p in rest)


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_they_label_images(name, parts):
    torch.manual_seed(0)
    model = parts.build(name).eval()
    batch = parts.make_batch()
    for sample in batch:
        sample["key"] = sample["file_name"]
    with torch.no_grad():
        rows = label_images(model, batch, nms_iou=0.5, keep=7)
        whole = model(batch)
    for row, sample, found in zip(rows, batch, whole, strict=True):
        assert row.key == sample["file_name"]
        assert 0 < len(row.scores) <= 7
        assert (np.diff(row.scores) <= 0).all()
        assert row.scores[0] == found["instances"].scores.max()
        assert set(row.classes) <= {0, 1, 2}


def test_sides_of_fcos_begin_where_gradients_reach_them(parts):
    """Also on maps that are the same everywhere, where each side is cut by the ReLU or is not.

    Sixteen draws of the last layers: with torchvision's bias of 0 about half have no gradient.
    """
    for seed in range(16):
        torch.manual_seed(seed)
        model = parts.build("fcos")
        head = model.network.head.regression_head
        maps = torch.rand(1, 64, 1, 1).expand(2, -1, 6, 6)
        sides, _ = head([maps])
        assert (sides > 0).all()
        sides.sum().backward()
        assert head.bbox_reg.bias.grad.tolist() == [2 * 36.0] * 4
