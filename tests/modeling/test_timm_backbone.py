"""Feature extractors of timm as backbones: maps, weights, freezing, refusals."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from predet.modeling.timm_backbone import TimmBackbone

timm = pytest.importorskip("timm", reason="needs the extra timm")

TINY_CONVNEXT = {"depths": [1, 1, 2, 1], "dims": [8, 16, 24, 32]}
TINY_SWIN = {"strict_img_size": False, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4}


def make(name: str = "convnext_atto", **options) -> TimmBackbone:
    torch.manual_seed(0)
    if name.startswith("convnext"):
        options.setdefault("options", TINY_CONVNEXT)
    return TimmBackbone(**{"name": name, "weights": None, **options})


@pytest.mark.parametrize(
    ("name", "options", "channels", "strides"),
    [
        ("convnext_atto", TINY_CONVNEXT, (16, 24, 32), (8, 16, 32)),
        ("resnet10t", {}, (128, 256, 512), (8, 16, 32)),
        ("mobilenetv3_small_050", {}, (16, 24, 288), (8, 16, 32)),
        ("vit_tiny_patch16_224", {"dynamic_img_size": True, "depth": 4}, (192,) * 3, (16,) * 3),
        (
            "swin_tiny_patch4_window7_224",
            TINY_SWIN,
            (16, 32, 64),
            (8, 16, 32),
        ),
    ],
)
def test_channels_and_strides_are_the_models(name, options, channels, strides) -> None:
    backbone = make(name, options=options).eval()
    assert (backbone.channels, backbone.strides) == (channels, strides)
    assert not backbone.pretrained
    with torch.no_grad():
        maps = backbone(torch.randn(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)
    ]


def test_maps_are_those_of_timm(tmp_path) -> None:
    torch.manual_seed(1)
    network = timm.create_model("convnext_atto", **TINY_CONVNEXT).eval()
    torch.save(network.state_dict(), tmp_path / "convnext.pth")
    backbone = make(weights=str(tmp_path / "convnext.pth"), out_indices=(1, 2)).eval()
    assert backbone.pretrained
    assert len(list(backbone.body.children())) == 5  # the last stage is not built
    pixels = torch.randn(2, 3, 71, 90)
    with torch.no_grad():
        maps = backbone(pixels)
        x = network.stages[1](network.stages[0](network.stem(pixels)))
        assert torch.equal(maps[0], x)
        assert torch.equal(maps[1], network.stages[2](x))


def test_weights_of_a_wrapped_model_load(tmp_path) -> None:
    options = {"depth": 3, "embed_dim": 24, "num_heads": 2, "dynamic_img_size": True}
    network = timm.create_model("vit_tiny_patch16_224", **options)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "vit.pth")
    backbone = make(
        "vit_tiny_patch16_224", weights=str(tmp_path / "vit.pth"), out_indices=[-1], options=options
    )
    own = backbone.body.state_dict()
    assert torch.equal(own["model.blocks.1.mlp.fc1.weight"], network.blocks[1].mlp.fc1.weight)


@pytest.mark.parametrize("name", ["convnext_atto", "resnet10t"])
@pytest.mark.parametrize("place", ["backbone.", "detector.backbone.", ""])
def test_checkpoints_of_our_own_load(name, place, tmp_path) -> None:
    source = make(name)
    state = {f"{place}{n}": t for n, t in source.state_dict().items()}
    if place:
        state["head.weight"] = torch.zeros(3)
    torch.save({"model": state, "step": 1}, tmp_path / "last.pth")
    torch.manual_seed(1)
    found = make(name, weights=str(tmp_path / "last.pth"))
    for key, tensor in source.state_dict().items():
        assert torch.equal(found.state_dict()[key], tensor), key


def test_counters_of_batch_norm_may_be_missing(tmp_path) -> None:
    """In old files, and in our own of frozen norms."""
    state = timm.create_model("resnet10t").state_dict()
    old = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    torch.save(old, tmp_path / "old.pth")
    frozen = make("resnet10t", weights=str(tmp_path / "old.pth"), frozen_batch_norm=True)
    torch.save({"model": frozen.state_dict()}, tmp_path / "ours.pth")
    for file in ("old.pth", "ours.pth"):
        found = make("resnet10t", weights=str(tmp_path / file)).body.state_dict()
        for name in found.keys() & old.keys():
            assert torch.equal(found[name], old[name]), name
    del old["layer1.0.bn1.running_var"]
    torch.save(old, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"1 tensors missing, such as layer1\.0\.bn1\.running_var"):
        make("resnet10t", weights=str(tmp_path / "part.pth"))


def test_weights_that_do_not_fit_are_named(tmp_path) -> None:
    state = timm.create_model("convnext_atto", **TINY_CONVNEXT).state_dict()
    del state["stages.1.blocks.0.mlp.fc1.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"1 tensors missing, such as stages_1\.blocks\.0\.mlp"):
        make(weights=str(tmp_path / "part.pth"))
    torch.save({"stem": "text"}, tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"'convnext_atto': .* tensors missing"):
        make(weights=str(tmp_path / "none.pth"))
    with pytest.raises(ValueError, match=r"None, 'timm' or a file, found none at absent\.pth"):
        make(weights="absent.pth")


def test_timm_is_asked_for_its_weights(monkeypatch) -> None:
    create, asked = timm.create_model, []

    def create_model(name, pretrained=False, **options):
        asked.append((name, pretrained))
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", create_model)
    assert make("convnext_atto.d2_in1k", weights="timm").pretrained
    assert asked == [("convnext_atto.d2_in1k", True)]


@pytest.mark.parametrize(
    ("name", "freeze_at", "frozen"),
    [
        ("convnext_atto", 0, ()),
        ("convnext_atto", 1, ("stem_", "stages_0")),
        ("resnet10t", 2, ("conv1", "bn1", "layer1")),
    ],
)
def test_freezing(name, freeze_at, frozen) -> None:
    backbone = make(name, freeze_at=freeze_at, allow_random_frozen=True).train()
    for parameter_name, parameter in backbone.body.named_parameters():
        assert parameter.requires_grad == (not parameter_name.startswith(frozen)), parameter_name
    before = {n: b.clone() for n, b in backbone.body.named_buffers()}
    backbone(torch.randn(2, 3, 64, 64))
    changed = {n for n, b in backbone.body.named_buffers() if not torch.equal(b, before[n])}
    assert not any(n.startswith(frozen) for n in changed if frozen)
    assert bool(changed) == (name == "resnet10t")


def test_frozen_batch_norm_keeps_the_function(tmp_path) -> None:
    torch.manual_seed(2)
    network = timm.create_model("mobilenetv3_small_050")  # activations inside of the norms
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    options = {"name": "mobilenetv3_small_050", "weights": str(tmp_path / "net.pth")}
    plain = make(**options).eval()
    frozen = make(**options, frozen_batch_norm=True).train()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for found, wanted in zip(frozen(pixels), plain(pixels), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


class TestRefusals:
    def test_unknown_name(self) -> None:
        with pytest.raises(ValueError, match="no model 'convnext_atoo'; nearest: convnext_atto"):
            make("convnext_atoo")

    def test_random_frozen(self) -> None:
        for options in ({"freeze_at": 1}, {"frozen_batch_norm": True}):
            with pytest.raises(ValueError, match="allow_random_frozen"):
                make("resnet10t", **options)

    def test_freezing_more_than_there_is(self) -> None:
        with pytest.raises(ValueError, match="between 0 and 4, the maps of 'convnext_atto', got 5"):
            make(freeze_at=5, allow_random_frozen=True)

    def test_freezing_what_is_in_one_piece(self) -> None:
        with pytest.raises(ValueError, match="'vit_tiny_patch16_224' cannot be frozen in part"):
            make("vit_tiny_patch16_224", freeze_at=1, allow_random_frozen=True)

    def test_checkpointing_batch_norms(self) -> None:
        with pytest.raises(ValueError, match="running statistics"):
            make("resnet10t", checkpointing=True)

    def test_without_timm(self, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(ValueError, match=r"'convnext_atto' needs timm: pip install 'predet\["):
            make()
