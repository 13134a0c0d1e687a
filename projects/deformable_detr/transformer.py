"""Transformer of Deformable DETR (Zhu et al., ICLR 2021, section 4): blocks and encoder-decoder.

Legend: B batch, S encoder tokens (pixels of all levels), Q object queries, D channels, L levels,
N decoder layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from predet.layers.attention import MultiHeadAttention
from predet.layers.checkpointing import run_block
from predet.layers.deformable_attention import MultiScaleDeformableAttention
from predet.layers.feed_forward import FeedForward
from predet.layers.transformer import Residual, xavier_init
from predet.modeling.outputs import DetectorOutput, Queries
from predet.ops.boxes import inverse_sigmoid

SpatialShapes = tuple[tuple[int, int], ...]


class Memory(NamedTuple):
    """Encoded feature maps, flattened one after the other."""

    tokens: Tensor  # (B, S, D)
    pad_mask: Tensor  # (B, S) bool, True = padding
    spatial_shapes: SpatialShapes  # (height, width) of each level
    valid_sizes: Tensor  # (B, L, 2), width and height of the image in each map, whole pixels
    valid_ratios: Tensor  # (B, L, 2), the same over width and height of the padded map


class DeformableTransformer(nn.Module):
    """Encoder over the pixels of all levels, decoder over object queries, both post-norm.

    There is no normalisation after the encoder nor after the decoder.

    Args:
        hidden_dim: D.
        num_heads: attention heads.
        num_encoder_layers: encoder blocks.
        num_decoder_layers: decoder blocks.
        ffn_dim: hidden channels of the feed-forward blocks.
        dropout: probability for self-attention weights of the decoder, feed-forward and
            residual branches.
        activation: "relu" or "gelu".
        num_levels: feature maps.
        num_encoder_points: samples of a head on each map in the encoder.
        num_decoder_points: the same in the decoder.
        checkpointing: compute the activations of a block again in the backward pass.
    """

    def __init__(
        self,
        *,
        hidden_dim: int = 256,
        num_heads: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        ffn_dim: int = 1024,
        dropout: float = 0.1,
        activation: str = "relu",
        num_levels: int = 4,
        num_encoder_points: int = 4,
        num_decoder_points: int = 4,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.hidden_dim = hidden_dim
        self.num_levels = num_levels
        self.num_decoder_layers = num_decoder_layers
        block = {
            "hidden_dim": hidden_dim,
            "num_heads": num_heads,
            "ffn_dim": ffn_dim,
            "dropout": dropout,
            "activation": activation,
            "num_levels": num_levels,
        }
        self.encoder_layers = nn.ModuleList(
            DeformableEncoderLayer(**block, num_points=num_encoder_points)
            for _ in range(num_encoder_layers)
        )
        self.decoder_layers = nn.ModuleList(
            DeformableDecoderLayer(**block, num_points=num_decoder_points)
            for _ in range(num_decoder_layers)
        )
        self.level_embed = nn.Parameter(torch.empty(num_levels, hidden_dim))
        self._reset_parameters()

    def encode(
        self, maps: Sequence[Tensor], pad_masks: Sequence[Tensor], positions: Sequence[Tensor]
    ) -> Memory:
        """Mix the pixels of all levels of an image.

        Args:
            maps: L of (B, D, H_l, W_l).
            pad_masks: L of (B, H_l, W_l) bool, True = padding.
            positions: L of (B, D, H_l, W_l), encodings without the level's.
        """
        spatial_shapes = tuple((m.shape[2], m.shape[3]) for m in maps)
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
        pad_mask = torch.cat([mask.flatten(1) for mask in pad_masks], dim=1)
        position = torch.cat(
            [
                p.flatten(2).transpose(1, 2) + level
                for p, level in zip(positions, self.level_embed, strict=True)
            ],
            dim=1,
        )
        valid_sizes = torch.stack([valid_size(mask) for mask in pad_masks], dim=1)
        padded_sizes = valid_sizes.new_tensor([(width, height) for height, width in spatial_shapes])
        valid_ratios = valid_sizes / padded_sizes
        # Levels are padded by different shares, since their sizes are rounded.
        centers = token_centers(spatial_shapes, valid_sizes)
        reference = centers[:, :, None] * valid_ratios[:, None]  # (B, S, L, 2)
        for layer in self.encoder_layers:
            tokens = run_block(
                layer,
                tokens,
                position,
                reference,
                spatial_shapes,
                pad_mask,
                checkpointing=self.checkpointing,
            )
        return Memory(tokens, pad_mask, spatial_shapes, valid_sizes, valid_ratios)

    def decode(
        self,
        queries: Queries,
        memory: Memory,
        class_heads: Sequence[nn.Module],
        box_heads: Sequence[nn.Module],
        *,
        refine: bool,
        look_forward_twice: bool = False,
    ) -> DetectorOutput:
        """Let the queries look at each other and at the memory, and read off boxes and classes.

        Args:
            queries: with reference points or boxes.
            memory: of `encode`.
            class_heads: one for each of the N layers; may be the same one.
            box_heads: one for each layer: how far a box is from its reference, as logits.
            refine: each layer starts from the boxes of the layer before it instead of from the
                queries' references, and no gradient flows back through them (iterative
                refinement, appendix of the paper).
            look_forward_twice: the boxes of a layer keep their gradient in the loss of the next
                layer, though not in where it looks (Zhang et al., DINO, 2022).
        """
        content, reference = queries.content, queries.reference
        assert reference is not None
        before = reference
        hidden, logits, boxes = [], [], []
        for layer, class_head, box_head in zip(
            self.decoder_layers, class_heads, box_heads, strict=True
        ):
            content = run_block(
                layer,
                content,
                queries,
                _in_every_level(reference, memory),
                memory,
                checkpointing=self.checkpointing,
            )
            hidden.append(content)
            logits.append(class_head(content))
            # Boxes stay in fp32 under autocast: bf16 has three digits for a coordinate.
            with torch.autocast(content.device.type, enabled=False):
                delta = box_head(content.to(self.level_embed.dtype)).float()
                refined = refine_boxes(delta, reference)
                boxes.append(refine_boxes(delta, before) if look_forward_twice else refined)
            if refine:
                before, reference = refined, refined.detach()
        return DetectorOutput(torch.stack(hidden), torch.stack(logits), torch.stack(boxes))

    def _reset_parameters(self) -> None:
        xavier_init(self)
        for module in self.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.reset_parameters()
        nn.init.normal_(self.level_embed)


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention over all levels and feed-forward, post-norm.

    Arguments as of `DeformableTransformer`.
    """

    def __init__(
        self,
        *,
        hidden_dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        activation: str,
        num_levels: int,
        num_points: int,
    ) -> None:
        super().__init__()
        self.self_attn = MultiScaleDeformableAttention(
            hidden_dim=hidden_dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points
        )
        self.self_attn_norm = Residual(hidden_dim=hidden_dim, dropout=dropout)
        self.ffn = FeedForward(
            hidden_dim=hidden_dim, ffn_dim=ffn_dim, dropout=dropout, activation=activation
        )
        self.ffn_norm = Residual(hidden_dim=hidden_dim, dropout=dropout)

    def forward(
        self,
        tokens: Tensor,
        position: Tensor,
        reference: Tensor,
        spatial_shapes: SpatialShapes,
        pad_mask: Tensor,
    ) -> Tensor:
        """(B, S, D), (B, S, D), (B, S, L, 2), shapes, (B, S) -> (B, S, D)."""
        tokens = self.self_attn_norm(
            tokens, lambda x: self.self_attn(x + position, reference, x, spatial_shapes, pad_mask)
        )
        return self.ffn_norm(tokens, self.ffn)


class DeformableDecoderLayer(nn.Module):
    """Self-attention between queries, deformable cross-attention, feed-forward, post-norm.

    Arguments as of `DeformableTransformer`.
    """

    def __init__(
        self,
        *,
        hidden_dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        activation: str,
        num_levels: int,
        num_points: int,
    ) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(
            hidden_dim=hidden_dim, num_heads=num_heads, dropout=dropout
        )
        self.self_attn_norm = Residual(hidden_dim=hidden_dim, dropout=dropout)
        self.cross_attn = MultiScaleDeformableAttention(
            hidden_dim=hidden_dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points
        )
        self.cross_attn_norm = Residual(hidden_dim=hidden_dim, dropout=dropout)
        self.ffn = FeedForward(
            hidden_dim=hidden_dim, ffn_dim=ffn_dim, dropout=dropout, activation=activation
        )
        self.ffn_norm = Residual(hidden_dim=hidden_dim, dropout=dropout)

    def forward(
        self, content: Tensor, queries: Queries, reference: Tensor, memory: Memory
    ) -> Tensor:
        """(B, Q, D), queries, (B, Q, L, 2 or 4) in the frame of the padded maps -> (B, Q, D)."""

        def attend_queries(x: Tensor) -> Tensor:
            query = x + queries.position
            return self.self_attn(query, query, x, attention_mask=queries.attention_mask)

        def attend_memory(x: Tensor) -> Tensor:
            return self.cross_attn(
                x + queries.position,
                reference,
                memory.tokens,
                memory.spatial_shapes,
                memory.pad_mask,
            )

        content = self.self_attn_norm(content, attend_queries)
        content = self.cross_attn_norm(content, attend_memory)
        return self.ffn_norm(content, self.ffn)


def refine_boxes(delta: Tensor, reference: Tensor) -> Tensor:
    """Move references by logits: (..., 4) and (..., 2 or 4) in [0, 1] -> boxes (..., 4).

    A reference point moves the centre only; width and height are then those of the logits.
    """
    logits = inverse_sigmoid(reference)
    if logits.shape[-1] == 2:
        logits = nn.functional.pad(logits, (0, 2))
    return (delta + logits).sigmoid()


def valid_size(pad_mask: Tensor) -> Tensor:
    """(B, H, W) bool -> (B, 2), width and height of the image in the map, whole numbers in fp32."""
    valid = (~pad_mask).float()
    return torch.stack([valid[:, 0, :].sum(dim=1), valid[:, :, 0].sum(dim=1)], dim=-1)


def token_centers(spatial_shapes: SpatialShapes, valid_sizes: Tensor) -> Tensor:
    """Where the token of each pixel lies, in the frame of its image: (B, S, 2), above 1 in padding.

    Args:
        spatial_shapes: (height, width) of each level.
        valid_sizes: (B, L, 2), width and height of the image in each level.
    """
    centers = []
    for level, (height, width) in enumerate(spatial_shapes):
        y = torch.arange(height, dtype=torch.float32, device=valid_sizes.device) + 0.5
        x = torch.arange(width, dtype=torch.float32, device=valid_sizes.device) + 0.5
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        pixels = torch.stack([grid_x, grid_y], dim=-1).flatten(0, 1)  # (H_l * W_l, 2)
        centers.append(pixels / valid_sizes[:, level, None])
    return torch.cat(centers, dim=1)


def _in_every_level(reference: Tensor, memory: Memory) -> Tensor:
    """(B, Q, 2 or 4) in the frame of the image -> (B, Q, L, 2 or 4) in that of the padded maps."""
    times = reference.shape[-1] // 2
    return reference[:, :, None] * memory.valid_ratios.repeat(1, 1, times)[:, None]
