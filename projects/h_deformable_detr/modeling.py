"""H-Deformable DETR: "DETRs with Hybrid Matching" (Jia et al., CVPR 2023), section 3.2.

Two-stage Deformable DETR with a second group of queries in training. Each target is matched to
several of them, so that more queries learn where objects are; the first group still learns to
give each object once, and is alone when detecting. Deviations from the paper: none.

Legend: B batch, Q queries of the one-to-one group, T of the one-to-many group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from predet.modeling.detector import Condition
from predet.modeling.outputs import DetectorOutput, Queries
from predet.modeling.targets import Targets
from predet.projects.deformable_detr import DeformableDETR
from predet.projects.h_deformable_detr.criterion import HybridCriterion
from predet.projects.h_deformable_detr.queries import MixedQueries


class HDeformableDETR(DeformableDETR):
    """`DeformableDETR` with `MixedQueries` and a `HybridCriterion`; arguments are the same.

    Without a one-to-many group (`num_one_to_many=0`) it is a `DeformableDETR` with those queries.
    """

    def transform(
        self, maps: Sequence[Tensor], pad_mask: Tensor, condition: Condition | None = None
    ) -> DetectorOutput:
        """Raw predictions of every layer; in training of both groups.

        `condition` sees each group by itself: what a query is told does not depend on its group.
        """
        num_more = self._num_one_to_many
        if num_more == 0:
            return super().transform(maps, pad_mask, condition)
        counts = []  # a condition may change how many there are

        def keep_apart(queries: Queries) -> Queries:
            groups = split_queries(queries, queries.content.shape[1] - num_more)
            if condition is not None:
                groups = tuple(condition(group) for group in groups)
            counts.append(groups[0].content.shape[1])
            return join_groups(*groups)

        output = super().transform(maps, pad_mask, keep_apart)
        return output.select(slice(counts[0]))._replace(
            encoder=output.encoder, one_to_many=output.select(slice(counts[0], None))
        )

    def prepare_targets(self, batch: Sequence[Mapping[str, Any]]) -> Targets:
        """Targets as of `Detector.prepare_targets`.

        Raises:
            ValueError: in training, an image has more targets than can have `copies` queries each.
        """
        targets = super().prepare_targets(batch)
        available, copies = self._num_one_to_many, self.criterion.copies
        for index, (sample, count) in enumerate(zip(batch, targets.counts, strict=True)):
            if 0 < available < count * copies:
                where = sample.get("file_name", f"image {index} of the batch")
                raise ValueError(
                    f"{where}: {count} targets with copies={copies} queries each need "
                    f"{count * copies} queries of the one-to-many group, which has {available}: "
                    f"set queries.num_one_to_many to {count * copies} or more, lower "
                    f"criterion.copies, or keep at most {available // copies} boxes an image"
                )
        return targets

    @property
    def _num_one_to_many(self) -> int:
        """Queries of the one-to-many group: T in training, else none."""
        return self.queries.num_taken - self.queries.num_queries

    def _check(self) -> None:
        super()._check()
        for name, wanted in (("queries", MixedQueries), ("criterion", HybridCriterion)):
            part = getattr(self, name)
            if not isinstance(part, wanted):
                raise ValueError(
                    f"H-Deformable DETR: {name} must be {wanted.__name__}, got "
                    f"{type(part).__name__}"
                )


def split_queries(queries: Queries, count: int) -> tuple[Queries, Queries]:
    """The first `count` queries and the others."""
    assert queries.attention_mask is None
    groups = slice(count), slice(count, None)
    first, second = (
        Queries(
            queries.content[:, group],
            queries.position[:, group],
            reference=queries.reference[:, group],
        )
        for group in groups
    )
    return first, second


def join_groups(first: Queries, second: Queries) -> Queries:
    """Both groups, of Q and T queries, in one, blind to each other in self-attention.

    A mask of a group, (Q, Q) or (B, Q, Q), stays in force within it.
    """
    counts = first.content.shape[1], second.content.shape[1]
    group = torch.arange(sum(counts), device=first.content.device) >= counts[0]
    blocked = group[:, None] != group[None]  # (Q + T, Q + T)
    if first.attention_mask is not None:
        blocked = blocked | F.pad(first.attention_mask, (0, counts[1], 0, counts[1]))
    if second.attention_mask is not None:
        blocked = blocked | F.pad(second.attention_mask, (counts[0], 0, counts[0], 0))
    return Queries(
        torch.cat([first.content, second.content], dim=1),
        torch.cat([first.position, second.position], dim=1),
        blocked,
        torch.cat([first.reference, second.reference], dim=1),
    )
