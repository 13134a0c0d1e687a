"""Where the queries of a deformable detector come from: learned, or the encoder's proposals.

A query source is called with the memory and the encoder's two heads, and returns the queries with
their references, and the encoder's output if it made one. `num_queries` is how many there are;
`uses_encoder_heads` says whether the detector has to make heads for the encoder.

Legend: B batch, Q queries, S encoder tokens, D channels, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from predet.layers.position import sine_embedding
from predet.layers.transformer import xavier_init
from predet.modeling.outputs import EncoderOutput, Queries
from predet.projects.deformable_detr.transformer import Memory, token_centers


class LearnedQueries(nn.Module):
    """One-stage: content and position are learned, a point is read off the position.

    Args:
        num_queries: Q.
        hidden_dim: D.
    """

    uses_encoder_heads = False

    def __init__(self, *, num_queries: int = 300, hidden_dim: int = 256) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.hidden_dim = hidden_dim
        self.query_embed = nn.Embedding(num_queries, 2 * hidden_dim)  # position, then content
        self.reference_points = nn.Linear(hidden_dim, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(
        self, memory: Memory, class_head: nn.Module | None, box_head: nn.Module | None
    ) -> tuple[Queries, None]:
        """The same queries for every image; the heads are not used."""
        position, content = self.query_embed.weight.chunk(2, dim=1)
        with torch.autocast(position.device.type, enabled=False):
            reference = self.reference_points(position).sigmoid()
        batch_size = len(memory.tokens)
        position, content, reference = (
            x.expand(batch_size, -1, -1) for x in (position, content, reference)
        )
        return Queries(content, position, reference=reference), None


class ProposalQueries(nn.Module):
    """Two-stage: the encoder's best proposals are the references, and encode the queries.

    Each token proposes a box of a size that grows with its level around itself. The best by class
    column 0 are taken; no gradient flows back through them. Tokens without a box, which all have
    one score, come last whatever it is: so an image's queries do not depend on its padding. (The
    published code lets them compete; trained models score them so low that it is the same.)

    Args:
        num_queries: Q, proposals taken.
        hidden_dim: D.
    """

    uses_encoder_heads = True

    def __init__(self, *, num_queries: int = 300, hidden_dim: int = 256) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.hidden_dim = hidden_dim
        self.enc_output = nn.Linear(hidden_dim, hidden_dim)
        self.enc_output_norm = nn.LayerNorm(hidden_dim)
        self.pos_trans = nn.Linear(2 * hidden_dim, 2 * hidden_dim)
        self.pos_trans_norm = nn.LayerNorm(2 * hidden_dim)
        xavier_init(self)

    @property
    def num_taken(self) -> int:
        """Proposals taken in this mode, training or not."""
        return self.num_queries

    def forward(
        self, memory: Memory, class_head: nn.Module, box_head: nn.Module
    ) -> tuple[Queries, EncoderOutput]:
        """Propose with the encoder's heads and take the best."""
        encoder, usable = self.propose(memory, class_head, box_head)
        best = best_proposals(encoder.logits, usable, self.num_taken)
        references = encoder.boxes.detach().gather(1, best[..., None].expand(-1, -1, 4))
        return self.encode(references), encoder

    def propose(
        self, memory: Memory, class_head: nn.Module, box_head: nn.Module
    ) -> tuple[EncoderOutput, Tensor]:
        """One box and K logits per token; and (B, S), which tokens have a box."""
        anchors, usable = proposal_anchors(memory)
        tokens = memory.tokens.masked_fill(~usable[..., None], 0)
        tokens = self.enc_output_norm(self.enc_output(tokens))
        with torch.autocast(tokens.device.type, enabled=False):
            delta = box_head(tokens.to(self.enc_output.weight.dtype)).float()
            boxes = (delta + anchors).sigmoid()
        return EncoderOutput(class_head(tokens), boxes), usable

    def encode(self, references: Tensor) -> Queries:
        """Boxes (B, Q, 4) in [0, 1] -> queries whose content and position encode them."""
        encoded = sine_embedding(references, self.hidden_dim // 2).flatten(2)  # (B, Q, 2 * D)
        position, content = self.pos_trans_norm(self.pos_trans(encoded)).chunk(2, dim=2)
        return Queries(content, position, reference=references)


def best_proposals(logits: Tensor, usable: Tensor, num_queries: int) -> Tensor:
    """(B, S, K), (B, S) -> (B, num_queries), tokens by falling objectness (column 0).

    Raises:
        ValueError: there are fewer tokens than queries.
    """
    if logits.shape[1] < num_queries:
        raise ValueError(
            f"{num_queries} queries cannot be chosen from {logits.shape[1]} encoder tokens: the "
            "images of the batch are too small, or num_queries is too large"
        )
    objectness = logits[..., 0].masked_fill(~usable, -math.inf)
    return objectness.topk(num_queries, dim=1).indices


def proposal_anchors(memory: Memory) -> tuple[Tensor, Tensor]:
    """The box that each token stands for, before its head moves it.

    Its centre is the token's pixel, its width and height 0.05 * 2^level of the image. A token of
    the padding, or whose box comes within 0.01 of 0 or 1 in any coordinate, is not usable.

    Returns:
        (B, S, 4) logits of cxcywh in [0, 1] of the image, +inf where not usable; (B, S) usable.
    """
    centers = token_centers(memory.spatial_shapes, memory.valid_sizes)
    pixels = [height * width for height, width in memory.spatial_shapes]
    sizes = [
        torch.full_like(level_centers, 0.05 * 2.0**level)
        for level, level_centers in enumerate(centers.split(pixels, dim=1))
    ]
    boxes = torch.cat([centers, torch.cat(sizes, dim=1)], dim=-1)
    usable = ((boxes > 0.01) & (boxes < 0.99)).all(dim=-1) & ~memory.pad_mask
    logits = torch.logit(boxes)  # NaN outside the image, which is never usable
    return logits.masked_fill(~usable[..., None], math.inf), usable
