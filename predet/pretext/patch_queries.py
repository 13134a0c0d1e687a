"""Image patches added to object queries, in groups (UP-DETR, arXiv 2011.09094, section 3.2).

The queries of an image fall into one group for each patch. The feature of a patch is added to the
queries of its group, and self-attention is blocked between groups, for the patches have nothing to
do with each other. What this makes of the features of a batch is a `Condition` of a detector.

Deviations: groups of any sizes (the published code's mask is wrong where a group has fewer queries
than there are groups, `docs/decisions/0016-patches-on-queries.md`).

Legend: B batch, N queries, M groups, F channels of a patch's feature, D channels of a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from predet.modeling.outputs import Queries

Part = Literal["position", "content"]
Masked = Literal["queries", "patches"]


class PatchQueries(nn.Module):
    """Projects the features of patches to the width of the queries, and conditions queries on them.

    Args:
        feature_dim: F.
        hidden_dim: D.
        num_patches: M. An image with fewer patches leaves its last groups without any.
        add_to: the part of the queries that patches are added to: "position", as UP-DETR on DETR.
            Deformable attention never compares a query with what it looks at, so there the patch
            has to be in the residual stream: "content".
        shuffle: in training, give each image the queries in an order of its own, so that any query
            may come into any group (section 3.2.2; of no help, appendix A.3).
        mask: in training, what is left without a patch now and then: single "queries" (as the
            published weights were trained) or whole "patches" (as the paper says).
        mask_probability: of each query or patch.
        groups_apart: whether self-attention is blocked between groups (section 3.2.1).
        standardize: see `Standardize`; not the paper's.
    """

    def __init__(
        self,
        *,
        feature_dim: int,
        hidden_dim: int,
        num_patches: int = 10,
        add_to: Part = "position",
        shuffle: bool = False,
        mask: Masked = "queries",
        mask_probability: float = 0.1,
        groups_apart: bool = True,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        if num_patches < 1:
            raise ValueError(f"num_patches must be at least 1, got {num_patches}")
        for name, value, known in (("add_to", add_to, Part), ("mask", mask, Masked)):
            if value not in get_args(known):
                raise ValueError(f"{name} must be one of {get_args(known)}, got {value!r}")
        if not 0 <= mask_probability < 1:
            raise ValueError(f"mask_probability must be in [0, 1), got {mask_probability}")
        self.num_patches = num_patches
        self.add_to = add_to
        self.shuffle = shuffle
        self.mask = mask
        self.mask_probability = mask_probability
        self.groups_apart = groups_apart
        self.standardize = Standardize(feature_dim) if standardize else nn.Identity()
        self.patch2query = nn.Linear(feature_dim, hidden_dim)

    def forward(self, features: Tensor, counts: Sequence[int]) -> PatchCondition:
        """What the detector is to be conditioned with.

        Args:
            features: (P, F), of the patches of all images, one image after the other.
            counts: patches of each of the B images; sums to P.

        Raises:
            ValueError: an image has more patches than there are groups.
        """
        most = max(counts, default=0)
        if most > self.num_patches:
            raise ValueError(
                f"image {counts.index(most)} of the batch has {most} patches, but queries are "
                f"divided into num_patches={self.num_patches} groups: it must be {most} or more, "
                "or images have fewer boxes"
            )
        image = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        group = torch.cat([torch.arange(count) for count in counts])
        encoded = self.patch2query(self.standardize(features))
        patches = encoded.new_zeros(len(counts), self.num_patches, encoded.shape[1])
        patches = patches.index_put((image.to(features.device), group.to(features.device)), encoded)
        probability = self.mask_probability if self.training else 0.0
        return PatchCondition(
            patches,
            self.add_to,
            self.shuffle and self.training,
            self.mask,
            probability,
            self.groups_apart,
        )


class Standardize(nn.Module):
    """Takes the mean of all patches from a feature, and divides by the standard deviation.

    Features behind a ReLU are mostly what all patches have in common. An optimiser that scales its
    steps, as Adam does, then learns what a patch is not before what it is; over a long training
    that passes, in a short one patches are never looked at. Mean and variance are running averages
    over the patches of training batches (of this process's part of a step).

    Args:
        num_features: F.
        momentum: weight of a new batch; the first one counts fully.
    """

    def __init__(self, num_features: int, *, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("variance", torch.ones(num_features))
        self.register_buffer("has_seen", torch.tensor(False))

    def forward(self, features: Tensor) -> Tensor:
        """(P, F) -> (P, F), in fp32."""
        features = features.float()
        if self.training and len(features) > 1:
            self._update(features.detach())
        # Channels that hardly ever fire are left small rather than blown up.
        spread = (self.variance + 1e-2 * self.variance.mean()).sqrt()
        return (features - self.mean) / spread.clamp(min=1e-6)

    @torch.no_grad()
    def _update(self, features: Tensor) -> None:
        variance, mean = torch.var_mean(features, dim=0)
        weight = torch.where(self.has_seen, self.momentum, 1.0)
        self.mean.lerp_(mean, weight)
        self.variance.lerp_(variance, weight)
        self.has_seen.fill_(True)


class PatchCondition(NamedTuple):
    """Adds patches to the queries of their groups and blocks the view between groups."""

    patches: Tensor  # (B, M, D), zero for a group without a patch
    add_to: Part
    shuffle: bool
    mask: Masked
    mask_probability: float
    groups_apart: bool

    def __call__(self, queries: Queries) -> Queries:
        """(B, N, D) queries, unmasked -> as many, of which query i is in the i-th's group.

        Raises:
            ValueError: there are fewer queries than groups.
        """
        assert queries.attention_mask is None
        batch_size, num_queries = queries.content.shape[:2]
        device = self.patches.device
        if self.shuffle:
            order = torch.rand(batch_size, num_queries, device=device).argsort(dim=1)
            queries = in_order(queries, order)
        group = group_of_query(num_queries, self.patches.shape[1], device)
        added = self.patches[:, group]  # (B, N, D)
        if self.mask_probability:
            draws = self.patches.shape[1] if self.mask == "patches" else num_queries
            kept = torch.rand(batch_size, draws, 1, device=device) >= self.mask_probability
            added = added * (kept[:, group] if self.mask == "patches" else kept)
        return queries._replace(
            **{self.add_to: getattr(queries, self.add_to) + added},
            attention_mask=group_mask(group) if self.groups_apart else None,
        )


def group_of_query(num_queries: int, num_groups: int, device: torch.device | None = None) -> Tensor:
    """(N,) int64, rising from 0: the group of each query; sizes differ by one at most.

    Raises:
        ValueError: some group would have no query.
    """
    if not 1 <= num_groups <= num_queries:
        raise ValueError(
            f"{num_queries} queries cannot be divided into {num_groups} groups, one for each "
            f"patch: num_patches must be from 1 to {num_queries}, or num_queries larger"
        )
    return torch.arange(num_queries, device=device) * num_groups // num_queries


def group_mask(group: Tensor) -> Tensor:
    """(N,) group of each query -> (N, N) bool, True = blocked: of another group."""
    return group[:, None] != group[None]


def in_order(queries: Queries, order: Tensor) -> Queries:
    """Each image's queries in an order of its own, (B, N) indices."""

    def pick(x: Tensor | None) -> Tensor | None:
        return x if x is None else x.gather(1, order[..., None].expand(-1, -1, x.shape[2]))

    return queries._replace(
        content=pick(queries.content),
        position=pick(queries.position),
        reference=pick(queries.reference),
    )
