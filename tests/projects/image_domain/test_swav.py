"""SwAV: codes and loss against loops, queue, frozen prototypes, processes, exact resume."""

from __future__ import annotations

import itertools
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from image_domain_parts import Constant, make_batch, make_swav
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from predet.checkpoint import read_checkpoint
from predet.data.scenes import make_scenes
from predet.engine.config import load_config
from predet.engine.settings import TrainSettings
from predet.engine.stopping import StopRequest
from predet.engine.train_net import train
from predet.projects.image_domain.swav import sinkhorn, swapped_prediction

SIZES = (64, 64, 32, 32)


def plain_sinkhorn(scores: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """Algorithm 1 of the paper, by loops over a table of columns (samples) and rows."""
    samples, prototypes = scores.shape
    q = [[math.exp(scores[b, k] / epsilon) for b in range(samples)] for k in range(prototypes)]
    total = sum(map(sum, q))
    q = [[value / total for value in row] for row in q]
    for _ in range(iterations):
        for k in range(prototypes):
            mass = sum(q[k])
            q[k] = [value / mass / prototypes for value in q[k]]
        for b in range(samples):
            mass = sum(q[k][b] for k in range(prototypes))
            for k in range(prototypes):
                q[k][b] /= mass * samples
    return samples * np.array(q).T


@pytest.mark.parametrize(("epsilon", "iterations"), [(0.05, 1), (0.05, 3), (0.5, 3), (0.02, 6)])
def test_codes_equal_loops(epsilon: float, iterations: int) -> None:
    scores = np.random.default_rng(0).uniform(-1, 1, (7, 4))
    found = sinkhorn(torch.from_numpy(scores), epsilon=epsilon, iterations=iterations)
    expected = plain_sinkhorn(scores, epsilon, iterations)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_codes_use_all_prototypes_alike() -> None:
    """Also where all scores prefer one prototype; and in the limit exactly."""
    scores = torch.randn(40, 5) * 0.1
    scores[:, 2] += 1
    codes = sinkhorn(scores, epsilon=0.05, iterations=200)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(40))
    torch.testing.assert_close(codes.sum(dim=0), torch.full((5,), 8.0), rtol=1e-3, atol=1e-3)
    greedy = (scores / 0.05).softmax(dim=1)
    assert greedy.sum(dim=0)[2] > 35
    tiny = sinkhorn(scores, epsilon=1e-3, iterations=3)
    assert tiny.isfinite().all()


def test_the_loss_equals_loops() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(5, 4, 3)) * 3
    codes = rng.dirichlet([1, 1, 1], (5, 2))
    total = []
    for code_view in range(2):
        others = [view for view in range(4) if view != code_view]
        for view in others:
            for image in range(5):
                scores = np.exp(logits[image, view])
                log = np.log(scores / scores.sum())
                total.append(-(codes[image, code_view] * log).sum())
    found = swapped_prediction(torch.from_numpy(logits), torch.from_numpy(codes))
    assert float(found) == pytest.approx(np.mean(total), rel=1e-6)


def test_losses_are_those_of_the_parts() -> None:
    """Once more from the features: last map, all views through the head together."""
    method = make_swav(weight=2.0)
    batch = make_batch(5, sizes=SIZES)
    loss = method(batch)["loss_swav"].item()
    with torch.no_grad():
        views = method.encode_views(batch)
        pooled = torch.stack([view.maps[-1].mean(dim=(2, 3)) for view in views], dim=1)
        embedded = F.normalize(method.projection_head(pooled.flatten(0, 1)), dim=1)
        scores = (embedded @ F.normalize(method.prototypes.weight, dim=1).T).view(5, 4, 6)
    codes = [plain_sinkhorn(scores[:, view].double().numpy(), 0.05, 3) for view in (0, 1)]
    predicted = (scores.double() / 0.1).log_softmax(dim=-1).numpy()
    parts = [
        -(codes[a] * predicted[:, v]).sum(axis=1).mean() for a in (0, 1) for v in range(4) if a != v
    ]
    assert loss == pytest.approx(2 * np.mean(parts), rel=1e-4)


def test_codes_have_no_gradient_and_everything_else_does() -> None:
    method = make_swav()
    sum(method(make_batch(4, sizes=SIZES)).values()).backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in method.parameters())
    # Of the length of prototypes nothing depends, so there is no gradient along it.
    weight = method.prototypes.weight
    along = (weight.grad * weight).sum(dim=1).abs()
    assert (along < 1e-4 * weight.grad.norm(dim=1) * weight.norm(dim=1) + 1e-9).all()


def test_steps_lower_the_loss() -> None:
    method, batch = make_swav(num_prototypes=4), make_batch(8, sizes=SIZES)
    optimizer = torch.optim.AdamW(method.parameters(), lr=2e-3)
    history = []
    for _ in range(15):
        loss = method(batch)["loss_swav"]
        history.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert history[-1] < 0.8 * history[0]


def test_prototypes_are_frozen_at_first() -> None:
    method = make_swav(frozen_passes=2)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2, weight_decay=0.1)
    directions = [F.normalize(method.prototypes.weight.detach().clone(), dim=1)]
    for _ in range(4):
        loss = method(make_batch(4, sizes=SIZES))["loss_swav"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        directions.append(F.normalize(method.prototypes.weight.detach().clone(), dim=1))
    moved = [
        float((after - before).abs().max()) for before, after in itertools.pairwise(directions)
    ]
    assert max(moved[:2]) < 1e-6
    assert min(moved[2:]) > 1e-4


@pytest.mark.parametrize("length", [7, 6])
def test_the_queue_holds_the_last_embeddings_and_takes_part_when_full(length: int) -> None:
    """Three embeddings a pass: 7 fill up after the first pass that may use them, 6 just before."""
    method = make_swav(queue_length=length, queue_start=2)
    twin = make_swav()
    kept: list[torch.Tensor] = []
    for number in range(4):
        batch = make_batch(3, seed=number, sizes=SIZES)
        with torch.no_grad():
            pooled = torch.stack(
                [view.maps[-1].mean(dim=(2, 3)) for view in method.encode_views(batch)], dim=1
            )
            embedded = method.projection_head(pooled.flatten(0, 1)).view(3, 4, 16)
            embedded = F.normalize(embedded, dim=-1)
            weight = F.normalize(method.prototypes.weight, dim=1)
            usable = 3 * number >= length and number >= 2
            codes = []
            for view in (0, 1):
                scores = embedded[:, view] @ weight.T
                if usable:
                    earlier = torch.cat([part[:, view] for part in reversed(kept)])[:length]
                    scores = torch.cat([scores, earlier @ weight.T])
                codes.append(sinkhorn(scores, epsilon=0.05, iterations=3)[:3])
            expected = swapped_prediction(
                embedded @ weight.T / method.temperature, torch.stack(codes, dim=1)
            )
        kept.append(embedded)
        found = method(batch)["loss_swav"]
        torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-5)
        without = twin(batch)["loss_swav"]
        assert (abs(found - without) > 1e-4) == usable
        assert int(method.queued) == min(length, 3 * (number + 1))
    newest = torch.cat([part[:, 1] for part in reversed(kept)])[:length]
    torch.testing.assert_close(method.queue[1], newest)


def test_a_batch_larger_than_the_queue() -> None:
    method = make_swav(queue_length=2)
    for _ in range(3):
        assert method(make_batch(5, sizes=SIZES))["loss_swav"].isfinite()
    assert int(method.queued) == 2


def test_fewer_images_than_prototypes_are_reported_once(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        method = make_swav(num_prototypes=9, queue_length=4)
        for _ in range(2):
            method(make_batch(3, sizes=SIZES))
        make_swav(num_prototypes=7, queue_length=4)(make_batch(3, sizes=SIZES))
    (record,) = caplog.records
    assert "spreads 3 images and a queue of 4 over 9 prototypes" in record.message


def test_a_collapsed_encoder_is_reported(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        make_swav(backbone=Constant(), num_prototypes=4)(make_batch(4, sizes=SIZES))
    assert any("features have collapsed" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [
        ({}, lambda: make_batch(1, sizes=SIZES), "at least 2 images .* all processes, got 1"),
        ({}, lambda: make_batch(3, sizes=(64,)), "needs 2 or more views of an image, got 1"),
        ({"assigned_views": 3}, lambda: make_batch(3), "needs 3 or more views of an image, got 2"),
    ],
)
def test_bad_batches_are_named(options: dict, batch, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_swav(**options)(batch())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_prototypes": 1}, "num_prototypes >= 2.* got 1, 2 and 3"),
        ({"epsilon": 0.0}, r"temperature and epsilon > 0, got 0\.1, 0\.0"),
        ({"queue_length": -1}, "must not be negative, got -1, 0 and 0"),
    ],
)
def test_bad_arguments_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_swav(**options)


def train_two_steps(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    parallel = DistributedDataParallel(make_swav(queue_length=4))  # waits for unused parameters
    for _ in range(2):
        parallel.zero_grad()
        losses = parallel(make_batch(6, sizes=SIZES)[3 * rank : 3 * rank + 3])
        sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in parallel.module.named_parameters()}
    torch.save((losses, gradients, parallel.module.queue), f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_loss_gradients_and_queue_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_two_steps, (str(tmp_path),), nprocs=2)
    method = make_swav(queue_length=4)
    for _ in range(2):
        method.zero_grad()
        expected = method(make_batch(6, sizes=SIZES))
        sum(expected.values()).backward()
    for rank in range(2):
        losses, gradients, queue = torch.load(tmp_path / f"rank{rank}.pt")
        torch.testing.assert_close(losses["loss_swav"], expected["loss_swav"])
        torch.testing.assert_close(queue, method.queue)
        for name, parameter in method.named_parameters():
            scale = parameter.grad.abs().max() + 1e-6
            error = (gradients[name] - parameter.grad).abs().max() / scale
            assert error < 1e-3, f"{name}: {error}"


def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Queue, frozen prototypes and counters go on where they were."""
    make_scenes(tmp_path, num_images=5, image_size=48, num_classes=2, seed=0)

    def run(output: Path, *, stop_first: bool = False) -> dict:
        keys = {
            "data.unlabeled.source": tmp_path / "images",
            "data.view.size": 32,
            "data.view.small_size": 16,
            "dataloader.train.total_batch_size": 2,
            "dataloader.train.num_workers": 0,
            "model.queue_length": 4,
            "model.queue_start": 1,
            "model.frozen_passes": 2,
            "train.output_dir": output,
            "train.max_iter": 4,
            "train.checkpoint_period": 1,
        }
        cfg = load_config("configs/tiny/swav.py", [f"{k}={v}" for k, v in keys.items()])
        stop = StopRequest()
        stop.requested = stop_first
        train(cfg, TrainSettings.from_config(cfg.train), num_gpus=0, resume=True, stop=stop)
        return read_checkpoint(output / "checkpoints" / "last.pth")

    whole = run(tmp_path / "whole")
    assert run(tmp_path / "parts", stop_first=True)["step"] == 1
    parts = run(tmp_path / "parts")
    assert int(whole["model"]["passes"]) == 4
    assert int(whole["model"]["queued"]) == 4
    for name, value in whole["model"].items():
        assert value.equal(parts["model"][name]), name
