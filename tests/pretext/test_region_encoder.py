"""The frozen encoder of regions: what it says, by torchvision, and that it never moves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from predet.checkpoint import save_checkpoint
from predet.modeling.backbone import ResNet
from predet.pretext.region_encoder import RegionEncoder

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def published(tmp_path: Path) -> tuple[nn.Module, str]:
    """A ResNet-18 of torchvision with statistics of its own, and its file."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    return network.eval(), str(path)


def patches(count: int = 3, size: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def by_torchvision(network: nn.Module, pixels: torch.Tensor, stage: int) -> torch.Tensor:
    x = (pixels.double() / 255 - MEAN[:, None, None]) / STD[:, None, None]
    x = network.maxpool(network.relu(network.bn1(network.conv1(x.float()))))
    for number in range(1, stage):
        x = getattr(network, f"layer{number}")(x)
    return x


@pytest.mark.parametrize(("stage", "width"), [(3, 128), (5, 512)])
def test_features_are_the_raw_spatial_mean_of_a_stage(
    tmp_path: Path, stage: int, width: int
) -> None:
    network, path = published(tmp_path)
    encoder = RegionEncoder(backbone=ResNet(depth=18, weights=path, out_stages=[stage]))
    assert encoder.num_features == width
    with torch.no_grad():
        maps = by_torchvision(network, patches(), stage)
    found = encoder(patches())
    torch.testing.assert_close(found, maps.mean(dim=(2, 3)), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[0], found[1], rtol=1e-2)


def test_pooling_and_normalisation(tmp_path: Path) -> None:
    network, path = published(tmp_path)
    with torch.no_grad():
        maps = by_torchvision(network, patches(), 3)
    backbone = ResNet(depth=18, weights=path, out_stages=[2, 3])  # of several maps the last
    found = RegionEncoder(backbone=backbone, pooling="max", normalize="l2")(patches())
    expected = maps.flatten(2).max(-1).values
    expected = expected / expected.square().sum(-1, keepdim=True).sqrt()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_weights_of_image_domain_pretraining_are_taken(tmp_path: Path) -> None:
    """By the loader of `backbone.weights`: a checkpoint whose norms were trained."""
    network, _ = published(tmp_path)
    state = {f"backbone.{k}": v for k, v in network.state_dict().items() if "fc." not in k}
    save_checkpoint(tmp_path / "last.pth", {"model": {**state, "head.bias": torch.zeros(2)}})
    weights = str(tmp_path / "last.pth")
    encoder = RegionEncoder(
        backbone=ResNet(depth=18, weights=weights, norm="bn", freeze_at=0, out_stages=[3])
    )
    with torch.no_grad():
        maps = by_torchvision(network, patches(), 3)
    torch.testing.assert_close(encoder(patches()), maps.mean(dim=(2, 3)), atol=1e-4, rtol=1e-4)


def test_it_is_frozen_and_never_in_training_mode(tmp_path: Path) -> None:
    _, path = published(tmp_path)
    backbone = ResNet(depth=18, weights=path, norm="bn", freeze_at=0, out_stages=[3])
    encoder = RegionEncoder(backbone=backbone)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    expected = encoder(patches())
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    found = encoder(patches())
    assert not found.requires_grad
    assert torch.equal(found, expected)
    # A patch's features do not depend on the other patches.
    torch.testing.assert_close(encoder(patches()[1:2]), expected[1:2], atol=1e-5, rtol=1e-5)
    assert all(value.equal(before[name]) for name, value in encoder.state_dict().items())


def test_no_patch_gives_no_feature(tmp_path: Path) -> None:
    _, path = published(tmp_path)
    encoder = RegionEncoder(backbone=ResNet(depth=18, weights=path, out_stages=[3]))
    assert encoder(patches(0)).shape == (0, 128)


def test_random_weights_are_refused_unless_asked_for() -> None:
    backbone = ResNet(depth=18, weights=None, norm="gn", freeze_at=0, out_stages=[3])
    with pytest.raises(ValueError, match=r"ResNet has random weights.*allow_random=True"):
        RegionEncoder(backbone=backbone)
    assert RegionEncoder(backbone=backbone, allow_random=True)(patches()).shape == (3, 128)


def test_misspelt_options_are_refused() -> None:
    backbone = ResNet(depth=18, weights=None, norm="gn", freeze_at=0, out_stages=[3])
    for name in ("pooling", "normalize"):
        with pytest.raises(ValueError, match=f"{name} must be one of .*, got 'sum'"):
            RegionEncoder(backbone=backbone, allow_random=True, **{name: "sum"})
