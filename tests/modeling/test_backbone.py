"""ResNet: equality with torchvision, freezing, weights, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from predet.layers.norm import FrozenBatchNorm2d
from predet.modeling.backbone import ResNet


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A torchvision ResNet-18 with random statistics, and its state dict in a file."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(network.state_dict(), path)
    return network.eval(), str(path)


def torchvision_maps(network, pixels):
    x = network.maxpool(network.relu(network.bn1(network.conv1(pixels))))
    maps = []
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = layer(x)
        maps.append(x)
    return maps


def test_maps_equal_torchvision(published):
    network, path = published
    backbone = ResNet(depth=18, weights=path, out_stages=(2, 3, 4, 5))
    pixels = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps = backbone(pixels)
        expected = torchvision_maps(network, pixels)
    for found, wanted, channels, stride in zip(
        maps, expected, backbone.channels, backbone.strides, strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        assert found.shape == (2, channels, 64 // stride, 96 // stride)
    assert backbone.pretrained


@pytest.mark.parametrize("depth", [18, 50])
def test_frozen_norms_are_folded_into_the_convolutions(depth):
    """The same maps and gradients as with norms after the convolutions, but for rounding."""
    torch.manual_seed(0)
    backbone = ResNet(
        depth=depth, weights=None, freeze_at=0, out_stages=(3, 5), allow_random_frozen=True
    ).double()
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.uniform_(0.5, 1.0)
            module.bias.normal_(std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    pixels = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    _, third, _, fifth = torchvision_maps(backbone, pixels)
    wanted = torch.autograd.grad(third.sum() + fifth.sum(), list(backbone.parameters()))
    found = backbone(pixels)
    torch.testing.assert_close(found, (third, fifth), rtol=1e-10, atol=1e-10)
    gradients = torch.autograd.grad(sum(m.sum() for m in found), list(backbone.parameters()))
    for gradient, expected in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-8 * expected.abs().max())
    assert found[-1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("norm", ["frozen_bn", "bn", "sync_bn"])
def test_weights_load_under_every_batch_norm(published, norm):
    network, path = published
    backbone = ResNet(depth=18, weights=path, norm=norm, freeze_at=0).eval()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = torchvision_maps(network, pixels)[-1]
        torch.testing.assert_close(backbone(pixels)[-1], expected)


@pytest.mark.parametrize(
    ("freeze_at", "frozen"),
    [
        (0, ()),
        (1, ("conv1", "bn1")),
        (2, ("conv1", "bn1", "layer1")),
        (5, ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")),
    ],
)
@pytest.mark.parametrize("norm", ["bn", "frozen_bn"])
def test_freezing(published, freeze_at, frozen, norm):
    backbone = ResNet(depth=18, weights=published[1], norm=norm, freeze_at=freeze_at).train()
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad == (not name.startswith(frozen)), name
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    backbone(torch.randn(2, 3, 64, 64))
    changed = {
        n.split(".")[0] for n, b in backbone.named_buffers() if not torch.equal(b, before[n])
    }
    trained = {"bn1", "layer1", "layer2", "layer3", "layer4"} - set(frozen)
    assert changed == (trained if norm == "bn" else set())


def test_stages_that_nobody_reads_are_not_built(published):
    backbone = ResNet(depth=18, weights=published[1], out_stages=(3, 4))
    assert not hasattr(backbone, "layer4")
    assert not hasattr(backbone, "fc")
    assert (backbone.channels, backbone.strides) == ((128, 256), (8, 16))


def test_dilation_halves_the_last_stride():
    options = {"depth": 50, "weights": None, "norm": "gn", "freeze_at": 0}
    dilated = ResNet(**options, dilation=True, out_stages=(4, 5))
    assert dilated.strides == (16, 16)
    assert dilated.channels == (1024, 2048)
    with torch.no_grad():
        maps = dilated(torch.randn(1, 3, 64, 64))
    assert [tuple(m.shape[2:]) for m in maps] == [(4, 4), (4, 4)]
    plain = ResNet(**options)
    assert {n: p.shape for n, p in plain.named_parameters()} == {
        n: p.shape for n, p in dilated.named_parameters()
    }


@pytest.mark.parametrize(("norm", "freeze_at"), [("frozen_bn", 0), ("bn", 2), ("gn", 1)])
def test_frozen_over_random_is_refused_unless_named(norm, freeze_at):
    with pytest.raises(ValueError, match="allow_random_frozen"):
        ResNet(depth=18, weights=None, norm=norm, freeze_at=freeze_at)
    backbone = ResNet(
        depth=18, weights=None, norm=norm, freeze_at=freeze_at, allow_random_frozen=True
    )
    assert not backbone.pretrained


def test_self_supervised_files_load(published, tmp_path):
    """SwAV's layout: every key prefixed, with a projection head and prototypes, no classifier."""
    network, path = published
    state = {f"module.{k}": v for k, v in torch.load(path).items() if not k.startswith("fc.")}
    state["module.projection_head.0.weight"] = torch.zeros(2, 2)
    state["module.prototypes.weight"] = torch.zeros(2, 2)
    torch.save(state, tmp_path / "swav.pth.tar")
    backbone = ResNet(depth=18, weights=str(tmp_path / "swav.pth.tar"))
    assert torch.equal(backbone.layer4[1].conv2.weight, network.layer4[1].conv2.weight)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "wrapped.pth")
    ResNet(depth=18, weights=str(tmp_path / "wrapped.pth"))


@pytest.mark.parametrize("place", ["backbone.", "detector.backbone."])
@pytest.mark.parametrize("norm", ["frozen_bn", "bn"])
def test_checkpoints_of_models_with_a_backbone_load(published, tmp_path, place, norm):
    """Of a run of predet only what lies under `backbone.`; averaged weights where there are any."""
    network, path = published
    state = {place + k: v for k, v in torch.load(path).items() if not k.startswith("fc.")}
    state["projector.weight"] = state["class_head.0.bias"] = torch.zeros(2)
    other = {k: v + 1 for k, v in state.items()}
    for name, content in {
        "plain": {"model": state, "ema": {}, "step": 3, "optimizer": {}},
        "averaged": {"model": other, "ema": state, "step": 3},
    }.items():
        torch.save(content, tmp_path / f"{name}.pth")
        backbone = ResNet(depth=18, weights=str(tmp_path / f"{name}.pth"), norm=norm)
        assert torch.equal(backbone.layer4[1].conv2.weight, network.layer4[1].conv2.weight)
        assert torch.equal(backbone.layer4[1].bn2.running_var, network.layer4[1].bn2.running_var)
        assert backbone.pretrained


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


class TestWeightsThatDoNotFit:
    def test_another_depth(self, published):
        with pytest.raises(ValueError, match=r"ResNet-34 .* tensors missing, such as layer1\.2"):
            ResNet(depth=34, weights=published[1])

    def test_batch_norm_weights_for_group_norm(self, published):
        with pytest.raises(ValueError, match=r"'gn': .* unexpected, such as bn1\.running_mean"):
            ResNet(depth=18, weights=published[1], norm="gn", freeze_at=0)

    def test_missing_tensors(self, published, tmp_path):
        state = torch.load(published[1])
        del state["layer3.0.conv1.weight"]
        torch.save(state, tmp_path / "part.pth")
        with pytest.raises(ValueError, match=r"layer3\.0\.conv1\.weight"):
            ResNet(depth=18, weights=str(tmp_path / "part.pth"))

    @pytest.mark.parametrize("name", ["text.pth", "empty.pth", "text.safetensors", "list.pth"])
    def test_files_of_something_else(self, tmp_path, name):
        path = tmp_path / name
        path.write_bytes(b"" if name == "empty.pth" else b"hello")
        if name == "list.pth":
            torch.save([torch.zeros(2)], path)
        with pytest.raises(ValueError, match=rf"backbone weights \S*{name}.*(cannot|got list)"):
            ResNet(depth=18, weights=str(path))

    def test_other_widths(self, published, tmp_path):
        state = torch.load(published[1])
        state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
        torch.save(state, tmp_path / "gray.pth")
        with pytest.raises(ValueError, match=r"1 tensors of another shape, such as conv1\.weight"):
            ResNet(depth=18, weights=str(tmp_path / "gray.pth"))

    def test_truncated_file(self, published, tmp_path):
        path = tmp_path / "cut.pth"
        path.write_bytes(Path(published[1]).read_bytes()[:10_000])
        with pytest.raises(ValueError, match=r"cut\.pth cannot be read"):
            ResNet(depth=18, weights=str(path))

    def test_a_pickle_that_runs_code_is_refused(self, tmp_path):
        path = tmp_path / "evil.pth"
        torch.save({"model": Evil(tmp_path / "was_run")}, path)
        with pytest.raises(ValueError, match=r"evil\.pth cannot be read"):
            ResNet(depth=18, weights=str(path))
        assert not (tmp_path / "was_run").exists()

    def test_no_file(self):
        with pytest.raises(ValueError, match=r"found none at missing\.pth"):
            ResNet(depth=18, weights="missing.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 152}, "got 152"),
        ({"out_stages": (5, 4)}, r"ascending.*got \(5, 4\)"),
        ({"out_stages": ()}, "ascending"),
        ({"out_stages": (1, 5)}, "ascending"),
        ({"freeze_at": 6}, "got 6"),
        ({"dilation": True}, "dilation needs depth 50 or 101, got 18"),
        ({"norm": "ln"}, "got 'ln'"),
    ],
)
def test_bad_arguments_are_named(change, message):
    options = {"depth": 18, "weights": None, "allow_random_frozen": True, **change}
    with pytest.raises(ValueError, match=message):
        ResNet(**options)


def test_frozen_batch_norms_are_everywhere():
    backbone = ResNet(depth=18, weights=None, allow_random_frozen=True)
    kinds = {type(m) for m in backbone.modules() if "Norm" in type(m).__name__}
    assert kinds == {FrozenBatchNorm2d}
