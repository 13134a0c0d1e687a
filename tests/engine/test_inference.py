"""Models of checkpoints, and the untrained ones that they are compared with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from predet.d2 import instantiate
from predet.engine.config import load_config
from predet.engine.distributed import seed_all
from predet.engine.inference import load_method, load_trained

CONFIG = Path(__file__).resolve().parents[2] / "configs/tiny/updetr.py"
SMALL = [
    "model.detector.transformer.hidden_dim=32",
    "model.detector.transformer.num_heads=4",
    "model.detector.transformer.ffn_dim=32",
    "model.detector.num_queries=7",
    "data.boxes.num=3",
]


@pytest.mark.parametrize("averaged", [False, True])
def test_a_method_and_its_untrained_self_share_only_the_backbone(averaged: bool) -> None:
    """What is untrained has the weights that training with the config's seed began from."""
    cfg = load_config(CONFIG, [*SMALL, "train.seed=5"])
    with_classes = load_config(CONFIG, [*SMALL, "data.num_classes=1"])
    seed_all(5)
    first = instantiate(with_classes.model).state_dict()
    torch.manual_seed(9)
    weights = {
        name: torch.randn_like(value) if value.is_floating_point() else value
        for name, value in first.items()
    }
    state = {"model": weights, "provenance": {"class_names": ["object"]}}
    if averaged:
        state = {**state, "ema": weights, "model": first}
    trained, untrained = load_method(cfg, state, torch.device("cpu"))
    assert not trained.training
    assert not untrained.training
    for name, value in trained.state_dict().items():
        assert value.equal(weights[name]), name
    for name, value in untrained.state_dict().items():
        source = weights if name.startswith("detector.backbone.") else first
        assert value.equal(source[name]), name


def test_weights_that_do_not_fit_are_called_by_their_file() -> None:
    cfg = load_config(CONFIG, SMALL)
    state = {"model": {"a": torch.zeros(1)}, "provenance": {"class_names": ["object"]}}
    with pytest.raises(ValueError, match=r"other\.pth does not fit the model"):
        load_trained(cfg, state, torch.device("cpu"), source="other.pth")
