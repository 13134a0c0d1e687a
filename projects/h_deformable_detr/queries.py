"""Queries of H-Deformable DETR: learned content at the encoder's proposals, two groups of them.

Legend: B batch, Q queries of the one-to-one group, T of the one-to-many group, D channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from predet.modeling.outputs import Queries
from predet.projects.deformable_detr.queries import ProposalQueries


class MixedQueries(ProposalQueries):
    """Two-stage with mixed selection: position from the proposals, content learned.

    In training the encoder's Q + T best proposals are taken, best first: the first Q are the
    one-to-one group, the others the one-to-many group. Otherwise only Q are taken.

    Args:
        num_queries: Q.
        num_one_to_many: T; 0 for no one-to-many group.
        hidden_dim: D.
    """

    def __init__(
        self, *, num_queries: int = 300, num_one_to_many: int = 1500, hidden_dim: int = 256
    ) -> None:
        super().__init__(num_queries=num_queries, hidden_dim=hidden_dim)
        if num_one_to_many < 0:
            raise ValueError(f"num_one_to_many must not be negative, got {num_one_to_many}")
        self.num_one_to_many = num_one_to_many
        self.query_embed = nn.Embedding(num_queries + num_one_to_many, hidden_dim)

    @property
    def num_taken(self) -> int:
        """Q + T in training, else Q."""
        return self.num_queries + self.num_one_to_many * self.training

    def encode(self, references: Tensor) -> Queries:
        """Boxes (B, Q or Q + T, 4) in [0, 1] -> queries whose position alone encodes them."""
        count = references.shape[1]
        position = super().encode(references).position
        content = self.query_embed.weight[:count].expand(len(references), -1, -1)
        return Queries(content, position, reference=references)
