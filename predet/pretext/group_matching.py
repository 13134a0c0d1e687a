"""Matching each target to a query of its own group only.

UP-DETR matches over all queries, so that a query which was given one patch may answer for another.
Here it may not. With one target a group the best matching takes the best query of each group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from predet.modeling.matcher import HungarianMatcher, Matches
from predet.modeling.outputs import DetectorOutput
from predet.modeling.targets import Targets
from predet.pretext.patch_queries import group_of_query


def match_in_groups(
    matcher: HungarianMatcher, output: DetectorOutput, targets: Targets, num_groups: int
) -> Matches:
    """Match target i of an image to a query of group i, in all decoder layers.

    Args:
        matcher: its costs are used.
        output: of the detector, on the whole batch.
        targets: at most `num_groups` an image.
        num_groups: M; which query is in which group, `group_of_query` tells.

    Raises:
        ValueError: an image has more targets than there are groups, or groups than queries.
    """
    if max(targets.counts, default=0) > num_groups:
        raise ValueError(
            f"{max(targets.counts)} targets of an image cannot be matched in {num_groups} groups: "
            "there is one target for each group"
        )
    members = members_of_groups(output.boxes.shape[2], num_groups, output.boxes.device)
    # Every group stands for an image, with one target or none.
    blocks = [int(group < count) for count in targets.counts for group in range(num_groups)]
    matches = matcher(
        output.logits[:, :, members].flatten(1, 2),
        output.boxes[:, :, members].flatten(1, 2),
        targets._replace(counts=tuple(blocks), step_counts=None),
    )
    group = matches.image % num_groups
    return Matches(matches.image // num_groups, members[group, matches.query], matches.target)


def members_of_groups(
    num_queries: int, num_groups: int, device: torch.device | None = None
) -> Tensor:
    """(M, largest group) queries of each group; smaller groups repeat their last one."""
    sizes = group_of_query(num_queries, num_groups).bincount()
    first = sizes.cumsum(0) - sizes
    step = torch.arange(int(sizes.max())).clamp(max=sizes[:, None] - 1)  # (M, largest)
    return (first[:, None] + step).to(device)
