"""The queries of a detector of the DETR family as `Regions`: each with the box it is matched to."""

from __future__ import annotations

import torch
from torch import Tensor

from predet.modeling.matcher import Matches
from predet.modeling.outputs import DetectorOutput
from predet.modeling.regions import Regions, sample_regions


def set_regions(
    output: DetectorOutput,
    matches: Matches,
    losses: dict[str, Tensor],
    *,
    max_regions: int | None,
) -> Regions:
    """The queries of all decoder layers; those without a target are background.

    Args:
        output: of the detector; further queries that share targets are left out.
        matches: of `output`.
        losses: to be handed on.
        max_regions: the most queries, matched ones first; None takes all.
    """
    instances = matches.query.new_full(output.hidden.shape[:3], -1)  # (L, B, Q)
    layer = torch.arange(len(instances), device=instances.device)[:, None]
    instances[layer, matches.image[None], matches.query] = matches.target
    features, instances = output.hidden.flatten(0, 2), instances.flatten()
    if max_regions is not None:
        kept = sample_regions(instances, max_regions=max_regions)
        features, instances = features[kept], instances[kept]
    return Regions(features, torch.zeros_like(instances), instances, losses)
