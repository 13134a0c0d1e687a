"""InfoNCE of instances against plain loops, its gradients, and the cases at the edge."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing

from predet.projects.align_det.contrast import instance_contrast, of_other_processes

CASES = {
    "several of each": ([0, 0, 1, 2, -1, 1, 2, -1], [1, 0, 2, 0, -1, 2, 1]),
    "an instance without keys": ([0, 1, 1, -1], [0, 0, -1, 2]),
    "an instance without queries": ([0, 0, -1], [0, 1, 1]),
    "ids far beyond 256": ([1000, 70_000, 1000], [70_000, 1000, 256]),
    "no key at all": ([3, 4, 4], []),
    "nothing but positives": ([5, 5], [5, 5, 5]),
}


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def plain(queries, query_ids, keys, key_ids, temperature, others=()) -> float:
    """By loops over instances and pairs, in double precision."""
    queries, keys = unit(queries), unit(keys) if len(keys) else keys
    everything = [
        *zip(query_ids, queries, strict=True),
        *zip(key_ids, keys, strict=True),
        *((None, row) for row in (unit(others) if len(others) else others)),
    ]
    per_instance = []
    for instance in sorted(set(query_ids) - {-1}):
        negatives = [row for other, row in everything if other != instance]
        pairs = []
        themselves = [q for other, q in zip(query_ids, queries, strict=True) if other == instance]
        for number, query in zip(query_ids, queries, strict=True):
            if number != instance:
                continue
            found = [k for other, k in zip(key_ids, keys, strict=True) if other == instance]
            for key in found or themselves:
                right = math.exp(query @ key / temperature)
                wrong = sum(math.exp(query @ row / temperature) for row in negatives)
                pairs.append(-math.log(right / (right + wrong)))
        per_instance.append(sum(pairs) / len(pairs))
    return sum(per_instance) / len(per_instance)


def features(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 6))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("temperature", [0.2, 0.5])
def test_loss_equals_loops(case, temperature):
    query_ids, key_ids = CASES[case]
    queries, keys = features(len(query_ids), 0), features(len(key_ids), 1)
    found = instance_contrast(
        torch.from_numpy(queries),
        torch.tensor(query_ids),
        torch.from_numpy(keys),
        torch.tensor(key_ids, dtype=torch.int64),
        temperature=temperature,
    )
    assert found.dtype == torch.float32
    expected = plain(queries, query_ids, keys, key_ids, temperature)
    assert float(found) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_further_negatives_equal_loops():
    query_ids, key_ids = CASES["several of each"]
    parts = features(8, 0), features(7, 1), features(5, 2)
    queries, keys, others = map(torch.from_numpy, parts)
    ids = torch.tensor(query_ids), torch.tensor(key_ids)
    found = instance_contrast(queries, ids[0], keys, ids[1], others=others)
    expected = plain(parts[0], query_ids, parts[1], key_ids, 0.5, parts[2])
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert float(found) > float(instance_contrast(queries, ids[0], keys, ids[1])) + 0.01


@pytest.mark.parametrize("key_ids", [[0, 1, 1], [-1, 1, 1]], ids=["keys", "themselves"])
def test_no_gradient_reaches_keys_and_negatives(key_ids):
    """The gradient is that of a loss whose negatives and keys are constants, query by query."""
    query_ids, key_ids = torch.tensor([0, 0, 1, -1]), torch.tensor(key_ids)
    queries, keys, others = (
        torch.from_numpy(features(n, s)).float().requires_grad_() for s, n in enumerate((4, 3, 2))
    )
    instance_contrast(queries, query_ids, keys, key_ids, others=others).backward()
    for constant in (keys, others):
        assert constant.grad is None or not constant.grad.any()
    assert not queries.grad[3].any()  # background: a negative only
    constants, fixed = queries.detach().clone(), keys.detach()
    cosine = torch.nn.functional.cosine_similarity
    total = torch.zeros(())
    for row, weight in ((0, 0.25), (1, 0.25), (2, 0.5)):
        anchor, own = queries[row][None], query_ids[row]
        against = [constants[query_ids != own], fixed[key_ids != own], others.detach()]
        wrong = (cosine(anchor, torch.cat(against)) / 0.5).exp().sum()
        pairs = fixed[key_ids == own] if own in key_ids else constants[query_ids == own]
        right = (cosine(anchor, pairs) / 0.5).exp()
        total = total - weight * (right / (right + wrong)).log().mean()
    expected = torch.autograd.grad(total, queries)[0]
    torch.testing.assert_close(queries.grad, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("counts", [(5, 3), (0, 0), (0, 4), (5, 0)])
def test_without_instances_the_loss_is_zero_and_has_gradients(counts):
    projector = torch.nn.Linear(6, 6)
    rows = [torch.from_numpy(features(n, s)).float() for s, n in enumerate(counts)]
    nothing = [torch.full((n,), -1) for n in counts]
    loss = instance_contrast(projector(rows[0]), nothing[0], rows[1], nothing[1])
    assert float(loss.detach()) == 0
    loss.backward()
    assert not projector.weight.grad.any()


def test_a_single_instance_without_negatives_has_no_loss():
    loss = instance_contrast(
        torch.ones(1, 4, requires_grad=True), torch.tensor([0]), torch.ones(1, 4), torch.tensor([0])
    )
    assert float(loss.detach()) == 0
    loss.backward()


@pytest.mark.parametrize("place", ["query", "background", "key"])
def test_nan_is_seen_wherever_it_is(place):
    queries, keys = (torch.from_numpy(features(n, 0)).float() for n in (3, 2))
    {"query": queries[0], "background": queries[2], "key": keys[1]}[place][1] = torch.nan
    found = instance_contrast(queries, torch.tensor([0, 1, -1]), keys, torch.tensor([0, 1]))
    assert found.isnan()


def test_half_precision_is_left_for_the_loss():
    queries, keys = (torch.from_numpy(features(4, s)).float() for s in (0, 1))
    ids = torch.tensor([0, 1, 2, -1])
    exact = instance_contrast(queries, ids, keys, ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert instance_contrast(queries, ids, keys, ids).equal(exact)


def of_one_process(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=3
    )
    found = of_other_processes(torch.full((rank, 2), float(rank)))
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_features_of_other_processes_are_gathered(tmp_path: Path):
    torch.multiprocessing.spawn(of_one_process, (str(tmp_path),), nprocs=3)
    found = [torch.load(tmp_path / f"{rank}.pt")[:, 0].tolist() for rank in range(3)]
    assert found == [[1, 2, 2], [2, 2], [1]]


def test_one_process_has_no_others():
    assert of_other_processes(torch.ones(4, 3)).shape == (0, 3)
