"""Twenty steps of each tiny config give the losses that are kept beside this file.

How the tolerances were chosen. Rounding: initial weights that differ by 1e-7 of themselves move the
losses of the detectors by at most 4e-6 and those of contrastive learning by 3e-6 in the first five
steps, by 1e-3 later; the first gradient by 3e-5. Where the side of a searched region lies on the
side of a proposal, rounding decides the sign of a distance: that has moved DETReg's first gradient
by 1e-3 and one later loss by 6e-3. Faults: a schedule that is one step late moves a loss of the
first five steps by 2e-3 or more. So the first steps are held to 1e-4, the others to 2e-2, the first
gradient to 5e-3. `golden_runs.py` records anew.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import golden_runs

from predet.modeling.criterion import SetCriterion

FIRST = 5
CORE = ("detr", "deformable_detr")  # the others are slow


def differences(found: dict, config: str) -> list[str]:
    path = golden_runs.golden_path(config)
    assert path.exists(), f"record it: python tests/golden/golden_runs.py {config}"
    kept = json.loads(path.read_text())
    pairs = [("first gradient", found["first_gradient"], kept["first_gradient"], 5e-3)]
    for step, (new, old) in enumerate(zip(found["losses"], kept["losses"], strict=True)):
        pairs.append((f"step {step}", new, old, 1e-4 if step < FIRST else 2e-2))
    return [
        f"{name}: {new} now, {old} kept"
        for name, new, old, tolerance in pairs
        if new != pytest.approx(old, rel=tolerance)
    ]


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(config, marks=() if config in CORE else pytest.mark.slow)
        for config in golden_runs.CONFIGS
    ],
)
def test_losses_are_the_kept_ones(config: str, tmp_path: Path) -> None:
    assert differences(golden_runs.run(config, tmp_path), config) == []


def sum_of_weights_with_a_larger_background(self, weights, step_counts):
    return torch.where(weights < 1, 0.11, weights).sum(dim=(1, 2))


def test_a_wrong_loss_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SetCriterion, "_sum_of_weights", sum_of_weights_with_a_larger_background)
    found = golden_runs.run("detr", tmp_path)
    assert len(differences(found, "detr")) > 5


def test_every_golden_file_belongs_to_a_config() -> None:
    kept = {path.stem for path in Path(__file__).parent.glob("*.json")}
    assert kept == set(golden_runs.CONFIGS)
