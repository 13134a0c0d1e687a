"""MLP, norms, residuals and the transformer's order of operations."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from predet.layers import feed_forward
from predet.layers.feed_forward import FeedForward
from predet.layers.mlp import MLP
from predet.layers.norm import (
    FrozenBatchNorm2d,
    convolve_and_normalize,
    freeze_batch_norm,
    group_norm,
    norm_layer,
)
from predet.layers.transformer import Residual, Transformer
from predet.ops.dropout import dropout


def test_mlp_is_linear_relu_linear():
    torch.manual_seed(0)
    mlp = MLP(input_dim=3, hidden_dim=5, output_dim=2, num_layers=2)
    x = torch.randn(4, 3)
    first, second = mlp.layers
    torch.testing.assert_close(mlp(x), second(first(x).clamp(min=0)))
    assert [tuple(layer.weight.shape) for layer in mlp.layers] == [(5, 3), (2, 5)]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        MLP(input_dim=3, hidden_dim=5, output_dim=2, num_layers=0)


def randomized_batch_norm() -> nn.BatchNorm2d:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return norm


def test_frozen_batch_norm_equals_batch_norm_in_eval_mode():
    norm = randomized_batch_norm()
    frozen = freeze_batch_norm(norm)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(frozen(x), norm.eval()(x))
    assert not list(frozen.parameters())
    assert torch.equal(frozen.train()(x), frozen.eval()(x))
    assert "num_batches_tracked" not in frozen.state_dict()


def test_frozen_batch_norm_keeps_the_dtype_of_activations():
    frozen = FrozenBatchNorm2d(4)
    assert frozen(torch.ones(1, 4, 2, 2).bfloat16()).dtype == torch.bfloat16


def test_freezing_reaches_nested_modules():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(randomized_batch_norm(), nn.ReLU()))
    x = torch.randn(2, 3, 5, 5)
    expected = network.eval()(x)
    frozen = freeze_batch_norm(network)
    assert isinstance(frozen[1][0], FrozenBatchNorm2d)
    torch.testing.assert_close(frozen.train()(x), expected)


def test_norms_by_name():
    assert isinstance(norm_layer("gn")(64), nn.GroupNorm)
    assert group_norm(64).num_groups == 32
    assert isinstance(norm_layer("sync_bn")(64), nn.SyncBatchNorm)
    with pytest.raises(ValueError, match="got 'layer'"):
        norm_layer("layer")
    with pytest.raises(ValueError, match="multiple of 32, got 48"):
        group_norm(48)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_residual_order(pre_norm):
    torch.manual_seed(0)
    residual = Residual(hidden_dim=8, dropout=0.0, pre_norm=pre_norm)
    nn.init.normal_(residual.weight)
    x = torch.randn(3, 8)

    def norm(x):
        return nn.functional.layer_norm(x, (8,), residual.weight, residual.bias)

    def branch(x):
        return x.sin()

    expected = x + norm(x).sin() if pre_norm else norm(x + x.sin())
    torch.testing.assert_close(residual(x, branch), expected)


def test_feed_forward_activations():
    torch.manual_seed(0)
    x = torch.randn(3, 8)
    for name, function in (("relu", nn.functional.relu), ("gelu", nn.functional.gelu)):
        ffn = FeedForward(hidden_dim=8, ffn_dim=16, dropout=0.0, activation=name)
        torch.testing.assert_close(ffn(x), ffn.linear2(function(ffn.linear1(x))))
    with pytest.raises(ValueError, match="got 'swish'"):
        FeedForward(hidden_dim=8, ffn_dim=16, dropout=0.0, activation="swish")


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_feed_forward_in_parts_is_the_whole_to_the_bit_of_its_dropout(monkeypatch, activation):
    """Rows that do not fill the parts; gradients of everything, in fp64."""
    torch.manual_seed(0)
    ffn = FeedForward(hidden_dim=8, ffn_dim=16, dropout=0.3, activation=activation).double()
    x = torch.randn(2, 7, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 7, 8, dtype=torch.float64)
    kept = []

    def run(function) -> list[torch.Tensor]:
        torch.manual_seed(1)
        leaves = (x, *ffn.parameters())
        output = function(x)
        return [output, *torch.autograd.grad((output * weight).sum(), leaves)]

    def by_rows(x: torch.Tensor) -> torch.Tensor:
        """The same draws: those of five rows at a time."""
        hidden = [getattr(nn.functional, activation)(ffn.linear1(r)) for r in rows_of(x)]
        return ffn.linear2(torch.cat([dropout(h, 0.3, True) for h in hidden])).view_as(x)

    def rows_of(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.flatten(0, 1).split(5)

    monkeypatch.setattr(feed_forward, "_HIDDEN_NUMBERS", 5 * 16)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        found = run(ffn)
    assert all(tensor.shape[-1] != 16 for tensor in kept), "the hidden layer is not kept"
    for a, b in zip(found, run(by_rows), strict=True):
        torch.testing.assert_close(a, b)
    ffn.eval()
    torch.testing.assert_close(ffn(x), by_rows_without_dropout(ffn, activation, x))


def by_rows_without_dropout(ffn: FeedForward, activation: str, x: torch.Tensor) -> torch.Tensor:
    return ffn.linear2(getattr(nn.functional, activation)(ffn.linear1(x)))


@pytest.mark.parametrize("pre_norm", [False, True])
def test_transformer_equals_pytorch_blocks_without_positions(pre_norm):
    """nn.Transformer has no positions inside; with zero positions the two are one."""
    torch.manual_seed(0)
    ours = Transformer(
        hidden_dim=16,
        num_heads=2,
        num_encoder_layers=2,
        num_decoder_layers=2,
        ffn_dim=24,
        dropout=0.0,
        pre_norm=pre_norm,
    )
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    options = {"dropout": 0.0, "batch_first": True, "norm_first": pre_norm}
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 24, **options),
        2,
        norm=nn.LayerNorm(16) if pre_norm else None,
        enable_nested_tensor=False,
    )
    decoder = nn.TransformerDecoder(
        nn.TransformerDecoderLayer(16, 2, 24, **options), 2, norm=nn.LayerNorm(16)
    )
    encoder.load_state_dict(to_pytorch(ours, "encoder"))
    decoder.load_state_dict(to_pytorch(ours, "decoder"))

    tokens, queries = torch.randn(2, 6, 16), torch.randn(2, 5, 16)
    pad_mask = torch.zeros(2, 6, dtype=torch.bool)
    pad_mask[1, 4:] = True
    memory = ours.encode(tokens, torch.zeros_like(tokens), pad_mask)
    expected = encoder(tokens, src_key_padding_mask=pad_mask)
    torch.testing.assert_close(memory[~pad_mask], expected[~pad_mask])
    output = ours.decode(
        queries, torch.zeros_like(queries), memory, torch.zeros_like(memory), pad_mask
    )
    torch.testing.assert_close(
        output[-1], decoder(queries, memory, memory_key_padding_mask=pad_mask)
    )
    assert output.shape == (2, 2, 5, 16)


def to_pytorch(transformer: Transformer, part: str) -> dict[str, torch.Tensor]:
    renames = [
        (f"{part}_layers.", "layers."),
        (f"{part}_norm.", "norm."),
        ("cross_attn_norm", "norm2"),
        ("self_attn_norm", "norm1"),
        ("ffn_norm", "norm3" if part == "decoder" else "norm2"),
        ("cross_attn", "multihead_attn"),
        ("ffn.", ""),
    ]
    found = {}
    for name, tensor in transformer.state_dict().items():
        if name.startswith(part):
            for old, new in renames:
                name = name.replace(old, new)
            found[name] = tensor
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("trained", ["both", "input", "weight"])
def test_folded_convolutions_have_the_gradients_of_their_parts(dtype, trained):
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2, bias=False).double()
    norm = freeze_batch_norm(randomized_batch_norm()).double()
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64, requires_grad=trained != "weight")
    convolution.weight.requires_grad_(trained != "input")
    leaves = [leaf for leaf in (x, convolution.weight) if leaf.requires_grad]
    expected = norm(convolution(x))
    wanted = torch.autograd.grad(expected.sin().sum(), leaves)
    if dtype == torch.float64:
        found = convolve_and_normalize(convolution, norm, x)
        gradients = torch.autograd.grad(found.sin().sum(), leaves)
        room = {}
    else:
        narrow = copy.deepcopy(convolution).float(), copy.deepcopy(norm).float()
        inputs = x.detach().float().requires_grad_(x.requires_grad)
        with torch.autocast("cpu", dtype=dtype):
            found = convolve_and_normalize(*narrow, inputs)
        assert found.dtype == dtype
        leaves = [leaf for leaf in (inputs, narrow[0].weight) if leaf.requires_grad]
        gradients = torch.autograd.grad(found.float().sin().sum(), leaves)
        assert all(gradient.dtype == torch.float32 for gradient in gradients)
        room = {"rtol": 0.05, "atol": 0.1, "check_dtype": False}
    torch.testing.assert_close(found, expected, **room)
    for gradient, right in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, right, **room)


def test_folded_convolutions_keep_their_input_and_weight_only():
    convolution = nn.Conv2d(4, 4, 3, bias=False)
    norm = freeze_batch_norm(randomized_batch_norm())
    x, kept = torch.randn(1, 4, 5, 5), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        convolve_and_normalize(convolution, norm, x)
    assert {tensor.data_ptr() for tensor in kept if tensor.numel() > 4} == {
        x.data_ptr(),
        convolution.weight.data_ptr(),
    }
