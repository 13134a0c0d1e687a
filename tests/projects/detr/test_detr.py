"""DETR: sizes and initial values as published, norms and options."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from predet.layers.transformer import Transformer
from predet.modeling.backbone import ResNet
from predet.projects.detr import DETR


def full_size(criterion, **options) -> DETR:
    return DETR(
        backbone=ResNet(depth=50, weights=None, allow_random_frozen=True),
        transformer=Transformer(**options),
        criterion=criterion("softmax"),
        num_classes=91,
    )


def test_parameters_of_the_published_model(criterion):
    """Counted on the authors' classes; 458 tensors in the published file."""
    with torch.device("meta"):
        model = full_size(criterion)
    assert sum(p.numel() for p in model.parameters()) == 41_524_768
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 41_302_368
    assert len(model.state_dict()) == 458


def test_pre_norm_adds_one_norm_after_the_encoder(criterion):
    with torch.device("meta"):
        model = full_size(criterion, pre_norm=True)
    assert sum(p.numel() for p in model.parameters()) == 41_524_768 + 2 * 256
    assert isinstance(model.transformer.encoder_norm, nn.LayerNorm)


def test_initial_values(detector):
    torch.manual_seed(0)
    model = detector("detr")
    for name, parameter in model.transformer.named_parameters():
        if parameter.dim() > 1:
            limit = math.sqrt(6 / sum(parameter.shape))
            assert 0.9 * limit < parameter.abs().max() <= limit, name  # Xavier-uniform
        elif "norm" in name:
            assert parameter.unique().tolist() in ([0.0], [1.0]), name
    assert 0.9 < model.query_embed.weight.std() < 1.1
    # The heads are left as PyTorch makes them.
    assert model.class_head.weight.abs().max() <= 1 / math.sqrt(64)
    assert model.class_head.out_features == 6


def test_queries_start_without_content(detector):
    model = detector("detr")
    queries = model.queries(2)
    assert not queries.content.any()
    assert torch.equal(queries.position[1], model.query_embed.weight)
    assert queries.attention_mask is None


def test_every_layer_passes_the_final_norm(detector, batch):
    model = detector("detr").eval()
    with torch.no_grad():
        hidden = model.detect(model.preprocess(batch())).hidden
    torch.testing.assert_close(hidden.mean(-1), torch.zeros(3, 3, 20), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        hidden.std(-1, correction=0), torch.ones(3, 3, 20), atol=1e-3, rtol=0
    )


def test_temperature_reaches_the_encoding(criterion):
    with torch.device("meta"):
        backbone = ResNet(depth=18, weights=None, allow_random_frozen=True)
        model = DETR(
            backbone=backbone,
            transformer=Transformer(hidden_dim=64),
            criterion=criterion("softmax"),
            num_classes=2,
            position_temperature=20.0,
        )
    assert model.position_encoding.temperature == 20.0
    assert model.position_encoding.offset == 0.0


def test_one_detection_a_query(detector, batch):
    model = detector("detr").eval()
    with torch.no_grad():
        results = model(batch())
    assert [len(result["instances"]) for result in results] == [20, 20, 20]


def test_focal_criterion_is_refused(criterion):
    with pytest.raises(ValueError, match="criterion is 'focal'"), torch.device("meta"):
        DETR(
            backbone=ResNet(depth=18, weights=None, allow_random_frozen=True),
            transformer=Transformer(hidden_dim=64),
            criterion=criterion("focal"),
            num_classes=2,
        )


def test_no_classes_are_refused(detector):
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        detector("detr", num_classes=0)
