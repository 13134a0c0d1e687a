"""Which query answers for which target (DETR, section 3.1)."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from predet.modeling.targets import Targets
from predet.ops.matching import (
    CLASSIFICATIONS,
    Classification,
    linear_sum_assignment,
    matching_cost,
    replace_non_finite,
)

logger = logging.getLogger(__name__)


class Matches(NamedTuple):
    """Matched pairs of every layer: P = sum over images of min(queries, targets), of each layer.

    Pairs are sorted by image, then by target.
    """

    image: Tensor  # (P,) int64, the same in every layer
    query: Tensor  # (L, P) int64
    target: Tensor  # (L, P) int64, into `Targets`


class HungarianMatcher(nn.Module):
    """Optimal one-to-one matching of each image's targets to its queries, layer by layer.

    Args:
        classification: "softmax" or "focal", what the logits mean.
        class_cost: weight of the class cost.
        bbox_cost: weight of the L1 distance of cxcywh in [0, 1].
        giou_cost: weight of the generalised IoU.
        focal_alpha: of the focal class cost.
        focal_gamma: of the focal class cost.
        max_bad_steps: consecutive calls with costs that are not finite before it is an error.
    """

    def __init__(
        self,
        *,
        classification: Classification,
        class_cost: float,
        bbox_cost: float = 5.0,
        giou_cost: float = 2.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        max_bad_steps: int = 20,
    ) -> None:
        super().__init__()
        if classification not in CLASSIFICATIONS:
            raise ValueError(
                f"classification must be one of {CLASSIFICATIONS}, got {classification!r}"
            )
        if class_cost == bbox_cost == giou_cost == 0:
            raise ValueError("at least one matching cost must be positive, got 0, 0 and 0")
        self.classification = classification
        self.class_cost = class_cost
        self.bbox_cost = bbox_cost
        self.giou_cost = giou_cost
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.max_bad_steps = max_bad_steps
        self.num_bad_costs = 0  # since the matcher was made
        self.bad_steps = 0  # in a row
        self._announced = False

    @torch.no_grad()
    def forward(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Matches:
        """Match all layers at once.

        Args:
            logits: (L, B, Q, K).
            boxes: (L, B, Q, 4), cxcywh in [0, 1].
            targets: of the B images.

        Raises:
            ValueError: shapes do not fit; or costs were not finite `max_bad_steps` times running.
        """
        cost = matching_cost(
            logits,
            boxes,
            targets.classes,
            targets.boxes,
            targets.counts,
            classification=self.classification,
            class_cost=self.class_cost,
            bbox_cost=self.bbox_cost,
            giou_cost=self.giou_cost,
            focal_alpha=self.focal_alpha,
            focal_gamma=self.focal_gamma,
        )
        # The only wait for the device in a training step, one for all layers.
        cost, bad = replace_non_finite(cost.cpu().numpy())
        self._count_bad_costs(bad, targets)
        query = linear_sum_assignment(cost, targets.counts)
        return _to_matches(query, targets.counts, boxes.device)

    def _count_bad_costs(self, bad: np.ndarray, targets: Targets) -> None:
        """A few bad costs need not end a run, so they are replaced, but never in silence."""
        if not bad.any():
            self.bad_steps = 0
            return
        self.num_bad_costs += int(bad.sum())
        self.bad_steps += 1
        layer, row = (int(index[0]) for index in bad.nonzero())
        image = int(np.searchsorted(np.cumsum(targets.counts), row, side="right"))
        message = (
            f"matching costs of layer {layer}, image {image} of the batch are not finite "
            f"({int(bad.sum())} costs in this step): predictions have overflowed or are NaN"
        )
        if self.bad_steps >= self.max_bad_steps:
            raise ValueError(f"{message}; {self.bad_steps} steps in a row, giving up")
        if not self._announced:
            logger.warning(
                "%s. Such pairs are matched last. Said once; an error after %d steps in a row.",
                message,
                self.max_bad_steps,
            )
            self._announced = True


def _to_matches(
    query_of_target: np.ndarray, counts: tuple[int, ...], device: torch.device
) -> Matches:
    """(L, M) query of each target, -1 = none -> matched pairs on the device."""
    layers, total = query_of_target.shape
    image = np.repeat(np.arange(len(counts)), counts)
    matched = query_of_target >= 0  # as many in each layer, not always the same ones
    target = np.broadcast_to(np.arange(total), (layers, total))[matched].reshape(layers, -1)
    query = query_of_target[matched].reshape(layers, -1)
    pairs = np.concatenate([image[target[:1]], query, target])  # one copy to the device
    pairs = torch.from_numpy(np.ascontiguousarray(pairs)).to(device, non_blocking=True)
    return Matches(pairs[0], pairs[1 : 1 + layers], pairs[1 + layers :])
