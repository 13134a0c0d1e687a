"""Two processes train as one: the losses need the batch of both."""

from __future__ import annotations

import pytest
import torch
import torch.multiprocessing
from image_domain_parts import make_batch, make_method
from torch.nn.parallel import DistributedDataParallel


def train_one_step(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    parallel = DistributedDataParallel(make_method())  # waits forever for unused parameters
    for _ in range(2):
        parallel.zero_grad()
        losses = parallel(make_batch(6)[3 * rank : 3 * rank + 3])
        sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in parallel.module.named_parameters()}
    torch.save((losses, gradients), f"{folder}/rank{rank}.pt")
    with pytest.raises(ValueError, match="two views of one size"):  # before anything is exchanged
        parallel.module(make_batch(1, sizes=(64, 32)))
    torch.distributed.barrier()
    parallel.module(make_batch(2)[rank : rank + 1])  # one image each is enough
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_losses_and_gradients_of_one(tmp_path):
    torch.multiprocessing.spawn(train_one_step, (str(tmp_path),), nprocs=2)
    method = make_method()
    expected = method(make_batch(6))
    sum(expected.values()).backward()
    halves = [make_method()(make_batch(6)[part]) for part in (slice(3), slice(3, 6))]
    for rank in range(2):
        losses, gradients = torch.load(tmp_path / f"rank{rank}.pt")
        for name, value in expected.items():
            torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=1e-6)
            separate = sum(half[name] for half in halves) / 2
            assert abs(separate - value) > 0.05, "losses of each process alone would be seen"
        for name, parameter in method.named_parameters():
            scale = parameter.grad.abs().max() + 1e-6
            error = (gradients[name] - parameter.grad).abs().max() / scale
            assert error < 1e-3, f"{name}: {error}"
