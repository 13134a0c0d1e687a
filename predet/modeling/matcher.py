"""Which query answers for which target (DETR, section 3.1)."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from torch import Tensor, nn

from predet.modeling.targets import Targets
from predet.ops.matching import CLASSIFICATIONS, Classification, match

logger = logging.getLogger(__name__)


class Matches(NamedTuple):
    """Matched pairs of every layer: P = sum over images of min(queries, copies * targets).

    Pairs are sorted by image, then by copy, then by target.
    """

    image: Tensor  # (P,) int64, the same in every layer
    query: Tensor  # (L, P) int64
    target: Tensor  # (L, P) int64, into `Targets`


class HungarianMatcher(nn.Module):
    """Optimal matching of each image's targets to its queries, layer by layer.

    Costs that are not finite are counted where they arise. On a GPU the counts are read only now
    and then, for reading makes the host wait for the device.

    Args:
        classification: "softmax" or "focal", what the logits mean.
        class_cost: weight of the class cost.
        bbox_cost: weight of the L1 distance of cxcywh in [0, 1].
        giou_cost: weight of the generalised IoU.
        focal_alpha: of the focal class cost.
        focal_gamma: of the focal class cost.
        max_bad_steps: steps in a row with costs that are not finite before it is an error.
        read_period: on a GPU, after how many calls the counts are read.
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
        read_period: int = 20,
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
        self.read_period = read_period
        self.num_bad_costs = 0  # since the matcher was made, as far as counts have been read
        # By layers and copies, which tell the calls of one step (decoder, encoder, ...) apart.
        self._bad_in_a_row: dict[tuple[int, int], int] = {}
        self._unread: list[tuple[int, Tensor]] = []  # copies and counts of each call
        self._announced = False

    @torch.no_grad()
    def forward(self, logits: Tensor, boxes: Tensor, targets: Targets, copies: int = 1) -> Matches:
        """Match all layers at once.

        Args:
            logits: (L, B, Q, K).
            boxes: (L, B, Q, 4), cxcywh in [0, 1].
            targets: of the B images.
            copies: queries that each target gets (one-to-many matching), as if every image's
                targets had been repeated so often.

        Raises:
            ValueError: shapes do not fit; or costs were not finite `max_bad_steps` times running.
        """
        assignment = match(
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
            copies=copies,
        )
        self._unread.append((copies, assignment.num_bad))
        if not logits.is_cuda or len(self._unread) >= self.read_period:
            self.read_bad_costs()
        return _to_matches(assignment.query_of_target, targets.counts, logits.shape[2], copies)

    def read_bad_costs(self) -> None:
        """Go through the counts of the calls since they were last read.

        A few bad costs need not end a run, so they are matched last, but never in silence.

        Raises:
            ValueError: costs were not finite `max_bad_steps` times running.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return
        # One copy, and so one wait for the device, for all of them.
        numbers = torch.cat([num_bad.flatten() for _, num_bad in unread]).cpu()
        parts = numbers.split([num_bad.numel() for _, num_bad in unread])
        for (copies, num_bad), own in zip(unread, parts, strict=True):
            self._judge(own.view(num_bad.shape), copies)

    def _judge(self, num_bad: Tensor, copies: int) -> None:
        """num_bad: (L, B), of one call."""
        call = (num_bad.shape[0], copies)
        total = int(num_bad.sum())
        if total == 0:
            self._bad_in_a_row[call] = 0
            return
        self.num_bad_costs += total
        self._bad_in_a_row[call] = self._bad_in_a_row.get(call, 0) + 1
        layer, image = num_bad.nonzero()[0].tolist()
        message = (
            f"matching costs of layer {layer}, image {image} of the batch are not finite "
            f"({total} costs in this step): predictions have overflowed or are NaN"
        )
        in_a_row = self._bad_in_a_row[call]
        if in_a_row >= self.max_bad_steps:
            raise ValueError(f"{message}; {in_a_row} steps in a row, giving up")
        if not self._announced:
            logger.warning(
                "%s. Such pairs are matched last. Said once; an error after %d steps in a row.",
                message,
                self.max_bad_steps,
            )
            self._announced = True


def _to_matches(
    query_of_target: Tensor, counts: tuple[int, ...], num_queries: int, copies: int
) -> Matches:
    """(L, copies * M) query of each target, -1 = none -> pairs, without waiting for the device."""
    layers, total = query_of_target.shape
    device = query_of_target.device
    matched = [min(copies * count, num_queries) for count in counts]
    image = torch.arange(len(counts)).repeat_interleave(torch.tensor(matched, dtype=torch.int64))
    image = image.to(device, non_blocking=True)
    target = _target_of_copy(counts, copies, device).expand(layers, total)
    if sum(matched) == total:
        return Matches(image, query_of_target, target)
    # As many in each layer and image, not always the same ones: those first, in their order.
    left_over = (query_of_target < 0).to(torch.uint8)
    pair = left_over.sort(dim=1, stable=True).indices[:, : sum(matched)]
    return Matches(image, query_of_target.gather(1, pair), target.gather(1, pair))


def _target_of_copy(counts: tuple[int, ...], copies: int, device: torch.device) -> Tensor:
    """(copies * M,) which target each entry of an assignment with copies stands for."""
    if copies == 1:
        return torch.arange(sum(counts), device=device)
    images = torch.arange(sum(counts)).split(list(counts))
    return torch.cat([rows.repeat(copies) for rows in images]).to(device, non_blocking=True)
