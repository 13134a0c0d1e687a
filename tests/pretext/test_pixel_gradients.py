"""Gradients with respect to pixels against the whole Jacobian, and where they must be zero."""

from __future__ import annotations

import copy

import pytest
import torch
from omegaconf import OmegaConf

from predet.d2 import instantiate
from predet.engine import load_config
from predet.pretext.pixel_gradients import pixel_gradients
from predet.pretext.pretraining import Pretraining

SMALL = {
    "hidden_dim": 32,
    "num_heads": 2,
    "ffn_dim": 16,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "num_queries": 4,
    "allow_random": True,
}


def make_model(config: str) -> Pretraining:
    cfg = load_config(f"configs/tiny/{config}.py", ["data.num_classes=1"])
    OmegaConf.set_struct(cfg, False)
    shrink(cfg.model)
    torch.manual_seed(0)
    model = instantiate(cfg.model).eval()
    with torch.no_grad():  # fresh box heads say the same of all pixels
        for parameter in model.detector.box_head.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def shrink(node) -> None:
    for key in list(node):
        child = node._get_node(key)
        if OmegaConf.is_dict(child):
            shrink(child)
        elif key in SMALL:
            node[key] = SMALL[key]


def make_sample(height: int = 64, width: int = 72) -> dict:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    return {"image": image}


@pytest.mark.parametrize(
    "config",
    ["detreg_detr", pytest.param("detreg_h_deformable", marks=pytest.mark.slow)],
)
def test_maps_are_norms_of_the_jacobian(config: str) -> None:
    model, sample = make_model(config), make_sample()
    found = pixel_gradients(model, sample, draws=200)
    detector = model.detector
    images = detector.preprocess([sample])
    with torch.no_grad():
        logits = detector.detect(images).logits[-1, 0]
    focal = detector.criterion.classification == "focal"
    scores = logits.sigmoid()[:, 0] if focal else logits.softmax(-1)[:, 0]
    query = scores.argmax()
    assert found.score == pytest.approx(float(scores.max()), rel=1e-5)

    def told(pixels: torch.Tensor) -> torch.Tensor:
        output = detector.detect(images._replace(pixels=pixels))
        return torch.cat(
            [output.boxes[-1, 0, query], model.feature_target.head(output.hidden[-1, 0, query])]
        )

    jacobian = torch.autograd.functional.jacobian(told, images.pixels)[:, 0, :, :64, :72]
    size = jacobian.square().sum(dim=1)  # (values, H, W), over the colours
    torch.testing.assert_close(found.x, size[0].sqrt(), rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(found.y, size[1].sqrt(), rtol=1e-3, atol=1e-7)
    assert not torch.allclose(found.x, found.y, rtol=0.1)
    exact = size[4:].sum(dim=0).sqrt()
    error = (found.embedding - exact).norm() / exact.norm()
    assert error < 0.15
    x, y, w, h = told(images.pixels)[:4].tolist()
    corners = [72 * (x - w / 2), 64 * (y - h / 2), 72 * (x + w / 2), 64 * (y + h / 2)]
    assert found.box.tolist() == pytest.approx(corners, abs=1e-3)


def test_without_an_embedding_there_is_no_map_of_it() -> None:
    model = make_model("detreg_detr")
    plain = Pretraining(
        detector=copy.deepcopy(model.detector),
        semantic_target=model.semantic_target,
        freeze_backbone=True,
    ).eval()
    found, expected = pixel_gradients(plain, make_sample()), pixel_gradients(model, make_sample())
    assert found.embedding is None
    torch.testing.assert_close(found.x, expected.x)
    assert all(parameter.grad is None for parameter in plain.parameters())
