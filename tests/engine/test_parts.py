"""Division of a step into micro-batches and processes changes the order of summation only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from engine_parts import COUNTS, gradients, images, save_gradients
from engine_processes import run_ranks

from predet.engine import step as step_module
from predet.engine.distributed import with_step_counts
from predet.modeling.criterion import SetCriterion, average_num_boxes
from predet.modeling.targets import prepare_targets

CPU = torch.device("cpu")
# One with the softmax loss; one with the focal loss and an encoder loss.
DETECTORS = ("detr", "deformable_detr")
RELATIVE = 1e-6  # of the norm of a gradient; the losses are computed in fp32


def error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest distance of two gradients, relative to the norm of the whole one."""
    assert found.keys() == expected.keys()
    scale = torch.cat([value.flatten() for value in expected.values()]).norm()
    distance = torch.cat([(found[name] - value).flatten() for name, value in expected.items()])
    return float(distance.norm() / scale)


@pytest.fixture(scope="module")
def whole() -> dict[str, dict[str, torch.Tensor]]:
    return {name: gradients(name, 1) for name in DETECTORS}


@pytest.mark.parametrize(("name", "micro_steps"), [("detr", 4), ("deformable_detr", 2)])
def test_micro_batches_have_the_gradient_of_the_large_batch(name, micro_steps, whole) -> None:
    assert error(gradients(name, micro_steps), whole[name]) < RELATIVE
    assert len(whole[name]) > 50


def test_parts_that_count_for_themselves_would_be_noticed(whole, monkeypatch) -> None:
    monkeypatch.setattr(step_module, "with_step_counts", lambda batches: batches)
    assert error(gradients("deformable_detr", 2), whole["deformable_detr"]) > 1e-2


def test_a_softmax_mean_of_each_part_would_be_noticed(whole, monkeypatch) -> None:
    monkeypatch.setattr(
        SetCriterion, "_sum_of_weights", lambda self, weights, counts: weights.sum(dim=(1, 2))
    )
    assert error(gradients("detr", 2), whole["detr"]) > 1e-2


def test_two_processes_have_the_gradient_of_one(whole, tmp_path: Path) -> None:
    """Each with two micro-batches; the four of them have 3, 8, 0 and 7 boxes."""
    path = tmp_path / "gradients.pt"
    run_ranks(save_gradients, 2, DETECTORS, 2, str(path), folder=tmp_path)
    found = torch.load(path)
    for name in DETECTORS:
        assert error(found[name], whole[name]) < RELATIVE


def test_counts_of_the_step_reach_the_criterion() -> None:
    items = images()
    first, second = with_step_counts([items[:2], items[2:5]])
    expected = torch.tensor([[3, 0, -1], [7, 1, 0]])
    for sample in [*first, *second]:
        assert torch.equal(sample["step_counts"], expected)
    targets = prepare_targets(second, 3, CPU)
    assert targets.counts == (7, 1, 0)
    assert average_num_boxes(targets, CPU) == 11 / 2
    assert average_num_boxes(targets, CPU, copies=6) == 66 / 2
    nothing = targets._replace(step_counts=torch.zeros(4, 2, dtype=torch.int64))
    assert average_num_boxes(nothing, CPU) == 1 / 4
    assert COUNTS[2:5] == (7, 1, 0)


def test_batches_without_boxes_of_their_own_stay_as_they_are() -> None:
    batches = [[{"image": torch.zeros(3, 2, 2)}]]
    assert with_step_counts(batches) is batches


def test_a_changed_number_of_boxes_is_refused() -> None:
    (batch,) = with_step_counts([images()[:2]])
    batch[0]["instances"] = batch[0]["instances"][np.array([0])]
    with pytest.raises(ValueError, match=r"\[1, 0\] boxes, .* \[\[3, 0\]\]: .*'step_counts' out"):
        prepare_targets(batch, 3, CPU)
    for sample in batch:
        del sample["step_counts"]
    assert prepare_targets(batch, 3, CPU).step_counts is None
