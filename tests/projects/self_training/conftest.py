"""Small detectors of both kinds of classification, from random weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from predet.configs.common.models import deformable_detr, detr
from predet.d2 import instantiate


@pytest.fixture(params=["detr", "deformable_detr"])
def detector(request: pytest.FixtureRequest) -> nn.Module:
    """DETR (softmax) or two-stage Deformable DETR (focal) of five classes and 20 queries."""
    if request.param == "detr":
        model = copy.deepcopy(detr.model)
        model.num_queries = 20
    else:
        model = copy.deepcopy(deformable_detr.two_stage)
        model.queries.num_queries, model.queries.hidden_dim = 20, 32
    model.backbone.update(depth=18, weights=None, norm="gn", freeze_at=0)
    model.transformer.update(hidden_dim=32, num_heads=4, ffn_dim=32, dropout=0.0)
    model.transformer.update(num_encoder_layers=1, num_decoder_layers=2)
    model.num_classes = 5
    torch.manual_seed(0)
    detector = instantiate(model).eval()
    # Larger weights, so that predictions differ between queries and classes.
    chosen = [detector.class_head, *([detector.transformer] if request.param == "detr" else [])]
    for parameter in (p for module in chosen for p in module.parameters()):
        nn.init.normal_(parameter, std=0.5)
    return detector
