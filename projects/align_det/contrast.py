"""Contrast of instances: InfoNCE over the predictions that two views make of the same box.

AlignDet (arXiv 2307.11077, section 3.2 and the published code). Ids are only compared, so there may
be as many instances as one likes.

Legend: R online and K target predictions, P of the online ones belong to an instance, D channels.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from predet.d2 import comm

_NO_LOGIT = -1e9  # finite: minus infinity everywhere would have gradients that are NaN


def instance_contrast(
    queries: Tensor,
    query_instances: Tensor,
    keys: Tensor,
    key_instances: Tensor,
    *,
    temperature: float = 0.5,
    others: Tensor | None = None,
) -> Tensor:
    """Mean over instances of the mean over an instance's pairs of the InfoNCE loss.

    The pairs of an instance are all of its online predictions with all of its target predictions;
    where it has none of the latter, with its online predictions themselves. The negatives of a pair
    are all predictions of both sides that do not belong to its instance, background included; no
    gradient goes into negatives, and none into the second one of a pair.

    An instance that has no online prediction does not count. One without any negative has no loss.

    Args:
        queries: (R, D) of the online detector; any length.
        query_instances: (R,) the instance of each, -1 for background.
        keys: (K, D) of the momentum copy.
        key_instances: (K,) in the same numbering.
        temperature: divides the cosines.
        others: (N, D) further negatives of all pairs.

    Returns:
        A scalar in fp32; 0 without any instance. NaN where a feature is: it is never masked.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys = F.normalize(queries.float(), dim=1), F.normalize(keys.float(), dim=1)
        keys = keys.detach()
        rows = torch.nonzero(query_instances >= 0).flatten()
        anchors, instances = queries[rows], query_instances[rows][:, None]
        to_keys = anchors @ keys.T / temperature  # (P, K)
        to_queries = anchors @ queries.detach().T / temperature  # (P, R)
        positive = instances == key_instances  # (P, K)
        own = instances == query_instances  # (P, R)
        against = [
            to_keys.masked_fill(positive, _NO_LOGIT),
            to_queries.masked_fill(own, _NO_LOGIT),
            to_queries.new_full((len(rows), 1), _NO_LOGIT),  # so that there is always one
        ]
        if others is not None:
            against.append(anchors @ F.normalize(others.float(), dim=1).detach().T / temperature)
        negatives = torch.cat(against, dim=1).logsumexp(dim=1, keepdim=True)  # (P, 1)
        losses = torch.where(
            positive.any(dim=1),
            _mean(F.softplus(negatives - to_keys), positive),
            _mean(F.softplus(negatives - to_queries), own),
        )
        # Every instance weighs the same, whatever number of anchors it has.
        weights = 1 / (instances == instances.T).sum(dim=1)
        return (losses * weights).sum() / weights.sum().clamp(min=1)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Means over the rows of (P, N) of the values that are counted. -> (P,)"""
    return (values * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def of_other_processes(features: Tensor) -> Tensor:
    """Features (R, D) of all other processes, one after the other, without gradient. -> (N, D)

    Processes may have different numbers of them. All must call it.
    """
    count, rank = comm.get_world_size(), comm.get_rank()
    if count == 1:
        return features[:0].detach()
    lengths = comm.all_gather(len(features))
    padded = features.new_zeros(max(lengths), features.shape[1])
    padded[: len(features)] = features.detach()
    parts = [torch.empty_like(padded) for _ in range(count)]
    dist.all_gather(parts, padded)
    return torch.cat([parts[r][: lengths[r]] for r in range(count) if r != rank])
