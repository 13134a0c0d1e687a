"""Transformer of DETR (section 3.2 and appendix A.3): blocks, encoder-decoder, initialisation.

Positions are added to the queries and keys of every attention, never to its values.

Legend: B batch, N pixels of the feature map, Q object queries, D channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from predet.layers.attention import MultiHeadAttention
from predet.layers.checkpointing import run_block
from predet.layers.feed_forward import FeedForward
from predet.ops.dropout import add_dropout


class Transformer(nn.Module):
    """Encoder over the pixels of one feature map, decoder over object queries.

    Post-norm has no normalisation after the encoder; pre-norm has. The decoder's final
    normalisation is shared: every layer's output passes through it on its way to the heads.

    Args:
        hidden_dim: D.
        num_heads: attention heads.
        num_encoder_layers: encoder blocks.
        num_decoder_layers: decoder blocks.
        ffn_dim: hidden channels of the feed-forward blocks.
        dropout: probability for attention weights, feed-forward and residual branches.
        activation: "relu" or "gelu".
        pre_norm: normalise before each branch instead of after adding it.
        checkpointing: compute the activations of a block again in the backward pass.
    """

    def __init__(
        self,
        *,
        hidden_dim: int = 256,
        num_heads: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        ffn_dim: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        pre_norm: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.num_decoder_layers = num_decoder_layers
        self.checkpointing = checkpointing
        block = {
            "hidden_dim": hidden_dim,
            "num_heads": num_heads,
            "ffn_dim": ffn_dim,
            "dropout": dropout,
            "activation": activation,
            "pre_norm": pre_norm,
        }
        self.encoder_layers = nn.ModuleList(
            TransformerEncoderLayer(**block) for _ in range(num_encoder_layers)
        )
        self.encoder_norm = nn.LayerNorm(hidden_dim) if pre_norm else nn.Identity()
        self.decoder_layers = nn.ModuleList(
            TransformerDecoderLayer(**block) for _ in range(num_decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        xavier_init(self)

    def encode(self, tokens: Tensor, position: Tensor, pad_mask: Tensor | None) -> Tensor:
        """Mix the pixels of an image.

        Args:
            tokens: (B, N, D).
            position: (B, N, D).
            pad_mask: (B, N) bool, True = padding.

        Returns:
            Memory (B, N, D); rows of padding hold nothing of use.
        """
        for layer in self.encoder_layers:
            tokens = run_block(layer, tokens, position, pad_mask, checkpointing=self.checkpointing)
        return self.encoder_norm(tokens)

    def decode(
        self,
        content: Tensor,
        query_position: Tensor,
        memory: Tensor,
        memory_position: Tensor,
        pad_mask: Tensor | None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Let the queries look at each other and at the memory.

        Args:
            content: (B, Q, D), what the queries start from.
            query_position: (B, Q, D).
            memory: (B, N, D).
            memory_position: (B, N, D).
            pad_mask: (B, N) bool, True = padding.
            attention_mask: (Q, Q) or (B, Q, Q), between queries; see `MultiHeadAttention`.

        Returns:
            (L, B, Q, D), normalised, one entry per layer.
        """
        keys = memory + memory_position
        outputs = []
        for layer in self.decoder_layers:
            content = run_block(
                layer,
                content,
                query_position,
                keys,
                memory,
                pad_mask,
                attention_mask,
                checkpointing=self.checkpointing,
            )
            outputs.append(self.decoder_norm(content))
        return torch.stack(outputs)


class TransformerEncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with a residual connection and a normalisation.

    Arguments as of `Transformer`.
    """

    def __init__(
        self,
        *,
        hidden_dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        activation: str = "relu",
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(
            hidden_dim=hidden_dim, num_heads=num_heads, dropout=dropout
        )
        self.ffn = FeedForward(
            hidden_dim=hidden_dim, ffn_dim=ffn_dim, dropout=dropout, activation=activation
        )
        self.self_attn_norm = Residual(hidden_dim=hidden_dim, dropout=dropout, pre_norm=pre_norm)
        self.ffn_norm = Residual(hidden_dim=hidden_dim, dropout=dropout, pre_norm=pre_norm)

    def forward(self, x: Tensor, position: Tensor, pad_mask: Tensor | None) -> Tensor:
        """(B, N, D), (B, N, D), (B, N) -> (B, N, D)."""

        def attend(x: Tensor) -> Tensor:
            query = x + position
            return self.self_attn(query, query, x, pad_mask=pad_mask)

        x = self.self_attn_norm(x, attend)
        return self.ffn_norm(x, self.ffn)


class TransformerDecoderLayer(nn.Module):
    """Self-attention between queries, cross-attention to the memory, feed-forward.

    Arguments as of `Transformer`.
    """

    def __init__(
        self,
        *,
        hidden_dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        activation: str = "relu",
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(
            hidden_dim=hidden_dim, num_heads=num_heads, dropout=dropout
        )
        self.cross_attn = MultiHeadAttention(
            hidden_dim=hidden_dim, num_heads=num_heads, dropout=dropout
        )
        self.ffn = FeedForward(
            hidden_dim=hidden_dim, ffn_dim=ffn_dim, dropout=dropout, activation=activation
        )
        self.self_attn_norm = Residual(hidden_dim=hidden_dim, dropout=dropout, pre_norm=pre_norm)
        self.cross_attn_norm = Residual(hidden_dim=hidden_dim, dropout=dropout, pre_norm=pre_norm)
        self.ffn_norm = Residual(hidden_dim=hidden_dim, dropout=dropout, pre_norm=pre_norm)

    def forward(
        self,
        content: Tensor,
        query_position: Tensor,
        keys: Tensor,
        memory: Tensor,
        pad_mask: Tensor | None,
        attention_mask: Tensor | None,
    ) -> Tensor:
        """One block; shapes as in `Transformer.decode`. `keys` is the memory with positions."""

        def attend_queries(x: Tensor) -> Tensor:
            query = x + query_position
            return self.self_attn(query, query, x, attention_mask=attention_mask)

        def attend_memory(x: Tensor) -> Tensor:
            return self.cross_attn(x + query_position, keys, memory, pad_mask=pad_mask)

        content = self.self_attn_norm(content, attend_queries)
        content = self.cross_attn_norm(content, attend_memory)
        return self.ffn_norm(content, self.ffn)


class Residual(nn.LayerNorm):
    """A normalisation that also adds a branch to its input: its state is that of the LayerNorm.

    Args:
        hidden_dim: channels.
        dropout: probability of dropping a channel of the branch's output.
        pre_norm: x + branch(norm(x)) instead of norm(x + branch(x)).
    """

    def __init__(self, *, hidden_dim: int, dropout: float, pre_norm: bool = False) -> None:
        super().__init__(hidden_dim)
        self.dropout = dropout
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """(..., D) -> (..., D)."""
        update = branch(super().forward(x) if self.pre_norm else x)
        x = add_dropout(x, update, self.dropout, self.training)
        return x if self.pre_norm else super().forward(x)


def xavier_init(module: nn.Module) -> None:
    """Xavier-uniform for every parameter of more than one dimension; the others stay."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
