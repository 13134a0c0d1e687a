"""Simple self-training: pre-train a detector on the boxes and classes that a teacher predicts.

Paper: "Revisiting DETR Pre-training for Object Detection" (arXiv 2308.01300). The pseudo-labels are
ordinary targets of the detector's ordinary losses; there is no embedding loss, no iteration and no
moving average of the teacher. What survives pre-training is `SelfTraining.detector`.

Ours, because the paper's text that we have does not tell: the backbone is frozen if and only if it
has pre-trained weights (a frozen random backbone would teach the transformer to read noise, and
pre-trained features are what the papers before keep fixed).
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from predet.pretext.pretraining import Pretraining
from predet.pretext.semantic_targets import SemanticTarget


class SelfTraining(Pretraining):
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
        super().__init__(
            detector=detector, semantic_target=semantic_target, freeze_backbone=freeze_backbone
        )
