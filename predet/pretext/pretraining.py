"""The meta-architecture of pre-training: a detector, its ordinary losses, and what methods add.

Whatever boxes and classes a batch brings, the detector learns them as it learns annotations. A
method may add two things: a loss on the features of patches (`FeatureTarget`; DETReg, UP-DETR),
and patches in the queries (`condition`; UP-DETR). What survives is `Pretraining.detector`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from predet.modeling.detector import Condition
from predet.modeling.matcher import Matches
from predet.modeling.outputs import DetectorOutput
from predet.modeling.targets import Targets
from predet.pretext.feature_target import FeatureTarget
from predet.pretext.semantic_targets import Batch, SemanticTarget

logger = logging.getLogger(__name__)


class Pretraining(nn.Module):
    """Any detector with any semantic target, and a loss on features of patches if there is one.

    Without a feature target the detector need not be of the DETR family: it only has to give its
    losses for a batch.

    Args:
        detector: what is trained, a meta-architecture with a `backbone`.
        semantic_target: what the classes of the boxes become.
        patch_encoder: maps patches (M, 3, S, S), uint8 RGB, to features (M, F), and tells F as
            `num_features`; never trained. Needed for a feature target.
        feature_target: the loss that the features of a box's patch are for.
        freeze_backbone: "auto" freezes it if and only if it was built with pre-trained weights
            (`detector.backbone.pretrained`); True and False decide by hand, for instance where the
            weights come from a checkpoint.

    Raises:
        ValueError: the widths of encoder, feature target and detector do not fit.
    """

    def __init__(
        self,
        *,
        detector: nn.Module,
        semantic_target: SemanticTarget,
        patch_encoder: nn.Module | None = None,
        feature_target: FeatureTarget | None = None,
        freeze_backbone: bool | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        self.detector = detector
        self.semantic_target = semantic_target
        self.patch_encoder = patch_encoder
        self.feature_target = feature_target
        self.backbone_is_frozen = _decide(freeze_backbone, detector)
        if self.backbone_is_frozen:
            detector.backbone.requires_grad_(False)
        if patch_encoder is not None:
            patch_encoder.requires_grad_(False)
        if feature_target is not None:
            feature_target.check_widths(detector.transformer.hidden_dim, self.num_features)
        self.train(self.training)

    @property
    def device(self) -> torch.device:
        """Where the detector lives."""
        return self.detector.device

    @property
    def num_classes(self) -> int:
        """Classes of the detector."""
        return self.detector.num_classes

    @property
    def num_features(self) -> int | None:
        """F of `encode_patches`; None where no patch is encoded."""
        return None if self.patch_encoder is None else self.patch_encoder.num_features

    def taught_classes(self, class_names: Sequence[str]) -> tuple[str, ...]:
        """What the class head knows after training on data with these classes."""
        return self.semantic_target.taught_classes(class_names)

    def forward(self, batch: Batch) -> dict[str, Tensor] | list[dict[str, Any]]:
        """In training the weighted losses, else the detector's detections.

        Args:
            batch: as the detector takes it; where patches are encoded, also "patches" (N, 3, S, S)
                uint8 RGB: row i is cut from where box i of "instances" lies.
        """
        if not self.training:
            return self.detector(batch)
        batch = self.semantic_target(batch)
        features = self.encode_patches(batch)
        if features is None:
            return self.detector(batch)
        detector = self.detector
        images, targets = detector.preprocess(batch), detector.prepare_targets(batch)
        output = detector.detect(images, self.condition(batch, features))
        matches = self.match(output, targets)
        losses = detector.criterion(output, targets, matches)
        if self.feature_target is not None:
            losses |= self.feature_target(output, targets, matches, features)
        return losses

    def encode_patches(self, batch: Batch) -> Tensor | None:
        """Features (M, F) of all patches of the batch, in the order of its targets; or None."""
        if self.patch_encoder is None:
            return None
        with torch.no_grad():
            return self.patch_encoder(collect_patches(batch, self.device))

    def condition(self, batch: Batch, features: Tensor) -> Condition | None:
        """How the queries change before the decoder sees them: not at all here.

        Args:
            batch: of which the images are.
            features: of `encode_patches`.
        """
        return None

    def match(self, output: DetectorOutput, targets: Targets) -> Matches:
        """Which query answers for which box, in all decoder layers: as in the detector here."""
        return self.detector.criterion.match(output, targets)

    def train(self, mode: bool = True) -> Pretraining:
        """As usual, but what is frozen stays in evaluation mode: its statistics do not move."""
        super().train(mode)
        if self.backbone_is_frozen:
            self.detector.backbone.eval()
        if self.patch_encoder is not None:
            self.patch_encoder.eval()
        return self


def collect_patches(batch: Sequence[Mapping[str, Any]], device: torch.device) -> Tensor:
    """The "patches" of all images of a batch, one after the other: (M, 3, S, S) uint8 on `device`.

    Raises:
        ValueError: an image has none, or not one for each of its boxes.
    """
    for index, sample in enumerate(batch):
        where = sample.get("file_name", f"image {index} of the batch")
        if "patches" not in sample:
            raise ValueError(
                f"{where}: pre-training on patches needs 'patches', got keys {sorted(sample)}; "
                "a PretextMapper with a PatchMaker cuts them"
            )
        patches, count = sample["patches"], len(sample["instances"])
        if patches.ndim != 4 or patches.shape[:2] != (count, 3) or patches.dtype != torch.uint8:
            raise ValueError(
                f"{where}: 'patches' must be uint8 ({count}, 3, S, S), one for each box, got "
                f"{patches.dtype} {tuple(patches.shape)}"
            )
    return torch.cat([sample["patches"] for sample in batch]).to(device, non_blocking=True)


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
