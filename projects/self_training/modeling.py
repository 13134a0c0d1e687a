"""Simple self-training: pre-train a detector on the boxes and classes that a teacher predicts.

Paper: "Revisiting DETR Pre-training for Object Detection" (arXiv 2308.01300). The pseudo-labels are
ordinary targets of the detector's ordinary losses; there is no embedding loss, no iteration and no
moving average of the teacher. What survives pre-training is `SelfTraining.detector`.

Ours, because the paper's text that we have does not tell: the backbone is frozen if and only if it
has pre-trained weights (a frozen random backbone would teach the transformer to read noise, and
pre-trained features are what the papers before keep fixed).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from predet.pretext.semantic_targets import SemanticTarget

logger = logging.getLogger(__name__)


class SelfTraining(nn.Module):
    """Meta-architecture of the pre-training stage: any detector with any semantic target.

    Args:
        detector: the student, a meta-architecture with a `backbone`.
        semantic_target: what the classes of the pseudo-boxes become.
        freeze_backbone: "auto" freezes it if and only if it was built with pre-trained weights
            (`detector.backbone.pretrained`); True and False decide by hand, for instance where the
            weights come from a checkpoint.
    """

    def __init__(
        self,
        *,
        detector: nn.Module,
        semantic_target: SemanticTarget,
        freeze_backbone: bool | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        self.detector = detector
        self.semantic_target = semantic_target
        self.backbone_is_frozen = _decide(freeze_backbone, detector)
        if self.backbone_is_frozen:
            detector.backbone.requires_grad_(False)
        self.train(self.training)

    @property
    def device(self) -> torch.device:
        """Where the detector lives."""
        return self.detector.device

    @property
    def num_classes(self) -> int:
        """Classes of the detector."""
        return self.detector.num_classes

    def taught_classes(self, class_names: Sequence[str]) -> tuple[str, ...]:
        """What the class head knows after training on data with these classes."""
        return self.semantic_target.taught_classes(class_names)

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """In training the detector's weighted losses on the pseudo-labels, else its detections."""
        if not self.training:
            return self.detector(batch)
        return self.detector(self.semantic_target(batch))

    def train(self, mode: bool = True) -> SelfTraining:
        """As usual, but the statistics of a frozen backbone's norms stay as they are."""
        super().train(mode)
        if self.backbone_is_frozen:
            self.detector.backbone.eval()
        return self


def _decide(freeze_backbone: bool | str, detector: nn.Module) -> bool:
    if isinstance(freeze_backbone, bool):
        return freeze_backbone
    if freeze_backbone != "auto":
        raise ValueError(f"freeze_backbone must be True, False or 'auto', got {freeze_backbone!r}")
    pretrained = getattr(detector.backbone, "pretrained", None)
    if pretrained is None:
        raise ValueError(
            f"{type(detector.backbone).__name__} does not tell whether its weights are "
            "pre-trained: set freeze_backbone to True or False"
        )
    logger.info(
        "the backbone %s: it is %s",
        "has pre-trained weights" if pretrained else "starts from random weights",
        "frozen" if pretrained else "trained",
    )
    return bool(pretrained)
