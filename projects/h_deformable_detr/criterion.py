"""The loss of H-DETR (section 3.2): one-to-one matching, and one-to-many for further queries."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from predet.modeling.criterion import SetCriterion, average_num_boxes
from predet.modeling.matcher import HungarianMatcher, Matches
from predet.modeling.outputs import DetectorOutput
from predet.modeling.targets import Targets


class HybridCriterion(SetCriterion):
    """The set loss, and the same for `output.one_to_many` where each target has several queries.

    The losses of that group carry `_one_to_many` behind the names of the set loss, and are divided
    by the number of boxes times `copies`. The encoder has no loss of this kind.

    Args:
        matcher: as of `SetCriterion`; used for both groups.
        weights: as of `SetCriterion`; used for both groups.
        copies: queries of the one-to-many group for each target, K of the paper.
        one_to_many_weight: of the losses of that group, lambda of the paper.
        focal_alpha: of the focal loss.
        focal_gamma: of the focal loss.
    """

    def __init__(
        self,
        *,
        matcher: HungarianMatcher,
        weights: Mapping[str, float],
        copies: int = 6,
        one_to_many_weight: float = 1.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
    ) -> None:
        super().__init__(
            matcher=matcher, weights=weights, focal_alpha=focal_alpha, focal_gamma=focal_gamma
        )
        if copies < 1:
            raise ValueError(f"copies must be at least 1, got {copies}")
        self.copies = copies
        self.one_to_many_weight = one_to_many_weight

    def forward(
        self, output: DetectorOutput, targets: Targets, matches: Matches | None = None
    ) -> dict[str, Tensor]:
        """Weighted losses by name; arguments as of `SetCriterion`, `matches` of the first group."""
        losses = super().forward(output, targets, matches)
        if output.one_to_many is None:
            return losses
        several = self.one_to_many_losses(output.one_to_many, targets)
        return losses | {f"{name}_one_to_many": value for name, value in several.items()}

    def one_to_many_losses(self, output: DetectorOutput, targets: Targets) -> dict[str, Tensor]:
        """Weighted losses of the one-to-many group's decoder layers."""
        num_boxes = average_num_boxes(targets, output.boxes.device, self.copies)
        matches = self.matcher(output.logits, output.boxes, targets, self.copies)
        losses = self.layer_losses(output, targets, matches, num_boxes)
        return {name: self.one_to_many_weight * value for name, value in losses.items()}
