"""Swin: equality with timm, with transformers and with attention pixel by pixel; weights."""

from __future__ import annotations

import itertools
import math
import sys

import pytest
import torch
from torch import nn

pytest.importorskip("timm", reason="the backbone is built on the extra timm")

from predet.modeling.swin import (
    Swin,
    _run_swin_block,
    blocked_pairs,
    from_windows,
    to_own_names,
    to_windows,
)

SMALL = {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 4), "window_size": 5}


def make_swin(**options) -> Swin:
    """A small one with unlike weights everywhere: fresh norms and biases hide mistakes."""
    torch.manual_seed(0)
    swin = Swin(**{"weights": None, **SMALL, **options})
    with torch.no_grad():
        for parameter in swin.parameters():
            parameter.normal_(std=0.3)
    return swin.eval()


def make_timm(**options) -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    torch.manual_seed(0)
    network = SwinTransformer(**{**SMALL, "img_size": 160, "num_classes": 3, **options})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    return network.eval()


def published_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The published classification files: merging at the end of a stage, buffers, `head`."""
    renamed = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[2:3] == ["downsample"]:
            parts[1] = str(int(parts[1]) - 1)
        name = ".".join(parts).replace("head.fc", "head")
        renamed[name] = tensor
    renamed["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(25, 25)
    renamed["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 25, 25)
    return renamed


def test_maps_equal_timm_where_windows_fit(tmp_path) -> None:
    network = make_timm()  # maps of 40, 20, 10 and 5 pixels
    torch.save({"model": network.state_dict()}, tmp_path / "swin.pth")
    swin = Swin(weights=str(tmp_path / "swin.pth"), **SMALL, out_stages=(2, 3, 4, 5)).eval()
    pixels = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        maps = swin(pixels)
        # With one window timm does not shift; published detectors do, and so do we.
        x = network.patch_embed(pixels)
        for index, layer in enumerate(network.layers[:3]):
            x = layer(x)
            expected = nn.functional.layer_norm(x, x.shape[-1:]).permute(0, 3, 1, 2)
            torch.testing.assert_close(maps[index], expected)
    assert swin.channels == (8, 16, 32, 64)
    assert swin.strides == (4, 8, 16, 32)
    assert [m.shape for m in maps] == [(2, 8 * 2**i, 40 // 2**i, 40 // 2**i) for i in range(4)]
    assert swin.pretrained
    assert not make_swin().pretrained


def hugging_face(swin: Swin) -> nn.Module:
    """transformers' Swin backbone with the same weights."""
    transformers = pytest.importorskip("transformers", "5", reason="an independent Swin")
    config = transformers.SwinConfig(
        image_size=224,
        embed_dim=SMALL["embed_dim"],
        depths=list(SMALL["depths"]),
        num_heads=list(SMALL["num_heads"]),
        window_size=SMALL["window_size"],
        out_features=["stage2", "stage3", "stage4"],
    )
    other = transformers.SwinBackbone(config).eval()
    state = {}
    for name, tensor in swin.state_dict().items():
        if name.startswith("patch_embed"):
            name = name.replace("patch_embed.proj", "patch_embed.patch_embeddings.projection")
            state[name.replace("patch_embed", "swin.embeddings", 1)] = tensor
            continue
        if name.startswith("output_norms"):
            name = name.replace("output_norms.stage", "")
            state[f"hidden_states_norms.stage{int(name[0]) - 1}{name[1:]}"] = tensor
            continue
        parts = name.split(".")
        if parts[2] == "downsample":
            parts[1] = str(int(parts[1]) - 1)
        name = "swin.encoder." + ".".join(parts)
        for old, new in (
            ("norm1", "layernorm_before"),
            ("norm2", "layernorm_after"),
            ("attn.proj", "attention.o_proj"),
            ("attn.relative", "attention.relative_position_bias.relative"),
        ):
            name = name.replace(old, new)
        if ".attn.qkv." in name:
            for kind, part in zip("qkv", tensor.chunk(3), strict=True):
                state[name.replace("attn.qkv", f"attention.{kind}_proj")] = part
        else:
            state[name] = tensor
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"swin.layernorm.weight", "swin.layernorm.bias"}  # not of the maps
    return other


@pytest.mark.parametrize("size", [(224, 256), (203, 301), (197, 210)])
def test_maps_equal_transformers_at_any_size(size: tuple[int, int]) -> None:
    swin = make_swin()
    other = hugging_face(swin)
    pixels = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps = swin(pixels)
        expected = other(pixels).feature_maps
    for found, wanted, stride in zip(maps, expected, swin.strides, strict=True):
        assert found.shape[2:] == (math.ceil(size[0] / stride), math.ceil(size[1] / stride))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def attention_by_pixels(attention: nn.Module, x: torch.Tensor, window: int, shift: int):
    """Window attention of a map (H, W, C) pixel by pixel, in the frame of the padded map.

    A pixel sees those that lie in the same window of the grid moved by `shift`, and on the same
    side of the border where the grid wraps around.
    """
    height, width, channels = x.shape
    padded = [math.ceil(size / window) * window for size in (height, width)]
    heads = attention.num_heads
    full = torch.zeros(*padded, channels)
    full[:height, :width] = x
    q, k, v = attention.qkv(full).unflatten(-1, (3, heads, -1)).unbind(2)
    table = attention.relative_position_bias_table
    output = torch.zeros(height, width, channels)
    pixels = list(itertools.product(range(padded[0]), range(padded[1])))

    def place(pixel):
        moved = [(p - shift) % size for p, size in zip(pixel, padded, strict=True)]
        return [m // window for m in moved], [m % window for m in moved], [p < shift for p in pixel]

    for row, column in itertools.product(range(height), range(width)):
        cell, inside, wrapped = place((row, column))
        seen, bias = [], []
        for pixel in pixels:
            other_cell, other_inside, other_wrapped = place(pixel)
            if other_cell == cell and other_wrapped == wrapped:
                seen.append(pixel)
                dy, dx = (a - b + window - 1 for a, b in zip(inside, other_inside, strict=True))
                bias.append(table[dy * (2 * window - 1) + dx])
        keys = torch.stack([k[p] for p in seen])  # (n, heads, C / heads)
        values = torch.stack([v[p] for p in seen])
        scale = (channels // heads) ** -0.5
        weights = (keys * q[row, column] * scale).sum(-1) + torch.stack(bias)  # (n, heads)
        mixed = (weights.softmax(0)[..., None] * values).sum(0)
        output[row, column] = attention.proj(mixed.flatten())
    return output


@pytest.mark.parametrize("size", [(6, 7), (4, 11), (5, 5), (3, 2)])
@pytest.mark.parametrize("index", [0, 1])
def test_a_block_equals_attention_pixel_by_pixel(size: tuple[int, int], index: int) -> None:
    """Also where the map is not larger than a window."""
    swin = make_swin(window_size=4, out_stages=(2,))
    block = swin.layers[0].blocks[index]
    x = torch.randn(*size, SMALL["embed_dim"])
    with torch.no_grad():
        mixed = x + attention_by_pixels(block.attn, block.norm1(x), 4, shift=2 * index)
        expected = mixed + block.mlp(block.norm2(mixed))
        blocked = blocked_pairs(*size, 4, 2, x.device) if index else None
        found = _run_swin_block(block, x[None], 4, 2 * index, blocked)[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_windows_round_trip() -> None:
    x = torch.arange(2 * 6 * 9 * 2.0).view(2, 6, 9, 2)
    windows = to_windows(x, 3)
    assert windows.shape == (2 * 6, 9, 2)
    assert torch.equal(windows[1], x[0, :3, 3:6].reshape(9, 2))
    assert torch.equal(from_windows(windows, 3, 6, 9), x)


class TestWeights:
    def test_published_names_load(self, tmp_path) -> None:
        network = make_timm()
        torch.save({"model": published_names(network.state_dict())}, tmp_path / "swin.pth")
        swin = Swin(weights=str(tmp_path / "swin.pth"), **SMALL)
        own = swin.state_dict()
        for name, tensor in network.state_dict().items():
            if not name.startswith(("norm", "head")):
                assert torch.equal(own[name], tensor), name
        assert torch.equal(own["output_norms.stage5.weight"], torch.ones(64))

    def test_self_supervised_and_prefixed_files_load(self, tmp_path) -> None:
        state = published_names(make_timm().state_dict())
        state = {f"module.encoder.{name}": tensor for name, tensor in state.items()}
        state["module.projector.weight"] = torch.zeros(3)
        torch.save({"state_dict": state}, tmp_path / "moby.pth")
        Swin(weights=str(tmp_path / "moby.pth"), **SMALL)

    def test_norms_of_a_published_detector_are_kept(self) -> None:
        names = {f"norm{i}.weight": torch.zeros(8 * 2**i) for i in (1, 2, 3)}
        assert list(to_own_names(names)) == [f"output_norms.stage{i}.weight" for i in (3, 4, 5)]

    def test_last_stages_that_nobody_reads_are_not_built(self, tmp_path) -> None:
        torch.save(make_timm().state_dict(), tmp_path / "swin.pth")
        swin = Swin(weights=str(tmp_path / "swin.pth"), **SMALL, out_stages=(3, 4))
        assert len(swin.layers) == 3
        assert swin.channels == (16, 32)
        assert len(swin.eval()(torch.randn(1, 3, 64, 64))) == 2

    def test_tables_of_another_window_are_resized(self, tmp_path) -> None:
        network = make_timm()
        torch.save(network.state_dict(), tmp_path / "swin.pth")
        swin = Swin(weights=str(tmp_path / "swin.pth"), **{**SMALL, "window_size": 7})
        name = "layers.1.blocks.0.attn.relative_position_bias_table"
        table = network.state_dict()[name]  # (9 * 9, 2)
        found = swin.state_dict()[name].view(13, 13, 2)
        import cv2

        expected = cv2.resize(table.view(9, 9, 2).numpy(), (13, 13), interpolation=cv2.INTER_CUBIC)
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-4, atol=1e-4)

    def test_timm_weights_are_asked_for_by_name(self, monkeypatch) -> None:
        import timm

        asked = []

        def create_model(name, pretrained):
            asked.append((name, pretrained))
            return make_timm()

        monkeypatch.setattr(timm, "create_model", create_model)
        swin = Swin(weights="timm:swin_tiny_patch4_window7_224.ms_in1k", **SMALL)
        assert asked == [("swin_tiny_patch4_window7_224.ms_in1k", True)]
        assert swin.pretrained
        with pytest.raises(ValueError, match=r"no model 'swin_tinny_patch4_window7_224'; nearest:"):
            Swin(weights="timm:swin_tinny_patch4_window7_224", **SMALL)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda s: s.pop("layers.1.blocks.0.mlp.fc1.weight"), "1 tensors missing"),
            (lambda s: s.update(extra=torch.zeros(1)), "1 tensors unexpected, such as extra"),
            (
                lambda s: s.update({"patch_embed.norm.weight": torch.zeros(9)}),
                r"another shape, such as patch_embed\.norm\.weight",
            ),
        ],
    )
    def test_what_does_not_fit_is_named(self, tmp_path, change, message) -> None:
        state = make_timm().state_dict()
        change(state)
        torch.save(state, tmp_path / "swin.pth")
        with pytest.raises(ValueError, match=message):
            Swin(weights=str(tmp_path / "swin.pth"), **SMALL)


def test_facts_of_the_published_sizes() -> None:
    """Drop path, channels and numbers of parameters as in H-Deformable-DETR."""
    swin = Swin(weights=None)
    rates = [
        getattr(block.drop_path1, "drop_prob", 0.0)
        for layer in swin.layers
        for block in layer.blocks
    ]
    assert rates == pytest.approx([0.2 * i / 11 for i in range(12)])
    assert (swin.channels, swin.strides) == ((192, 384, 768), (8, 16, 32))
    # 28,288,354 of the classifier, less its head (768 * 1000 + 1000) and norm (2 * 768).
    norms = 2 * (192 + 384 + 768)
    assert sum(p.numel() for p in swin.parameters()) == 28_288_354 - 769_000 - 1536 + norms
    assert all(p.requires_grad for p in swin.parameters())
    with torch.device("meta"):
        large = Swin(weights=None, embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48))
    # 196,532,476 of the published 1000-class model, less head and norm.
    norms = 2 * (384 + 768 + 1536)
    expected = 196_532_476 - (1536 * 1000 + 1000) - 2 * 1536 + norms
    assert sum(p.numel() for p in large.parameters()) == expected


@pytest.mark.parametrize(
    ("freeze_at", "frozen"), [(0, ()), (1, ("patch_embed",)), (2, ("patch_embed", "layers.0"))]
)
def test_freezing(freeze_at: int, frozen: tuple[str, ...]) -> None:
    swin = make_swin(freeze_at=freeze_at, allow_random_frozen=True, drop_path=0.5).train()
    for name, parameter in swin.named_parameters():
        assert parameter.requires_grad == (not name.startswith(frozen)), name
    for name, module in swin.named_modules():
        if "drop_path" in name:  # what is frozen drops nothing
            assert module.training == (not name.startswith(frozen)), name


def test_frozen_over_random_is_refused_unless_named() -> None:
    with pytest.raises(ValueError, match=r"freeze_at=1 .*allow_random_frozen"):
        Swin(weights=None, **SMALL, freeze_at=1)


def test_depths_for_layer_wise_learning_rates() -> None:
    depths = make_swin().layer_depths()
    assert depths["patch_embed.norm.bias"] == 0
    assert depths["layers.0.blocks.1.mlp.fc1.weight"] == 2
    assert depths["layers.1.downsample.reduction.weight"] == 3
    assert depths["layers.1.blocks.0.attn.qkv.bias"] == 3
    assert depths["layers.3.blocks.1.norm2.weight"] == 8
    assert depths["output_norms.stage3.weight"] == 9
    assert depths.keys() == dict(make_swin().named_parameters()).keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": (2, 2, 6)}, r"depths must be 4 numbers > 0, got \[2, 2, 6\]"),
        ({"num_heads": (3, 2, 4, 4)}, "3 heads of stage 2 must divide its 8 channels"),
        ({"window_size": 1}, "window_size must be at least 2, got 1"),
        ({"drop_path": 1.0}, "below 1, got 1"),
        ({"freeze_at": 6}, "freeze_at must be between 0 and 5, got 6"),
        ({"out_stages": (5, 3)}, r"ascending.*got \(5, 3\)"),
    ],
)
def test_bad_arguments_are_named(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        Swin(**{"weights": None, **SMALL, **change})


def test_without_timm_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"Swin needs timm: pip install 'predet\[timm\]'"):
        Swin(weights=None, **SMALL)
