"""UP-DETR: Unsupervised Pre-training for Object Detection with Transformers (CVPR 2021).

A detector is shown random patches of an image, by its queries, and learns to find where they are
(sections 3.1 and 3.2, arXiv 2011.09094). What survives is `UPDETR.detector`. Deviations, all in
`docs/decisions/0016-patches-on-queries.md` and `0017-up-detr-losses.md`: groups of any sizes; the
reconstructed features are a target, no gradient flows into them; on deformable detectors patches
are added to the content of the queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from predet.modeling.detector import Condition, Detector
from predet.modeling.matcher import Matches
from predet.modeling.outputs import DetectorOutput
from predet.modeling.postprocess import class_scores
from predet.modeling.targets import Targets
from predet.ops.boxes import cxcywh_to_xyxy
from predet.pretext.feature_target import FeatureTarget, NormalizedSquared
from predet.pretext.group_matching import match_in_groups, members_of_groups
from predet.pretext.patch_queries import Masked, Part, PatchQueries, group_of_query
from predet.pretext.pretraining import Pretraining, collect_patches
from predet.pretext.semantic_targets import Batch, SemanticTarget

MATCHING = ("all", "group")


class Found(NamedTuple):
    """Where a detector sees the patches of an image: P patches."""

    boxes: Tensor  # (P, 4) absolute xyxy in the frame of "image"
    scores: Tensor  # (P,), probability of "this is the patch"


class UPDETR(Pretraining):
    """Meta-architecture of the pre-training stage: any detector of the DETR family.

    The features of patches are those of the detector's own backbone: the mean over its last map.
    A softmax criterion gets the no-object weight M / N of equation 1, for M patches and N queries.

    Args:
        detector: what is trained; of its classes only the first is used, "this is the patch".
        semantic_target: what the classes of the boxes become; `Objectness` is the paper's.
        num_patches: M, patches of an image.
        add_to, shuffle, mask, mask_probability, groups_apart, standardize: of `PatchQueries`.
        reconstruction_weight: of the loss on the features of patches (section 3.1.1); 0 leaves it
            out, with its head.
        freeze_backbone: as of `Pretraining`.
        matching: the queries that a patch's box may be matched to: "all" of the image (paper and
            code), or those of the patch's own "group". The further queries of H-Deformable DETR,
            of which each patch is matched to several, are matched over all of them either way.

    Raises:
        ValueError: there are more patches than queries.
    """

    def __init__(
        self,
        *,
        detector: Detector,
        semantic_target: SemanticTarget,
        num_patches: int = 10,
        add_to: Part = "position",
        shuffle: bool = False,
        mask: Masked = "queries",
        mask_probability: float = 0.1,
        groups_apart: bool = True,
        standardize: bool = False,
        reconstruction_weight: float = 1.0,
        freeze_backbone: bool | Literal["auto"] = "auto",
        matching: Literal["all", "group"] = "all",
    ) -> None:
        hidden_dim, channels = detector.transformer.hidden_dim, detector.backbone.channels[-1]
        reconstruction = FeatureTarget(
            hidden_dim=hidden_dim,
            num_features=channels,
            distance=NormalizedSquared(),
            layers="all",
            weight=reconstruction_weight,
        )
        super().__init__(
            detector=detector,
            semantic_target=semantic_target,
            feature_target=reconstruction if reconstruction_weight else None,
            freeze_backbone=freeze_backbone,
        )
        if matching not in MATCHING:
            raise ValueError(f"matching must be one of {MATCHING}, got {matching!r}")
        self.matching = matching
        self.patch_queries = PatchQueries(
            feature_dim=channels,
            hidden_dim=hidden_dim,
            num_patches=num_patches,
            add_to=add_to,
            shuffle=shuffle,
            mask=mask,
            mask_probability=mask_probability,
            groups_apart=groups_apart,
            standardize=standardize,
        )
        group_of_query(detector.num_queries, num_patches)  # or an error
        if detector.criterion.classification == "softmax":
            detector.criterion.no_object_weight = num_patches / detector.num_queries

    @property
    def num_features(self) -> int:
        """Channels of the backbone's last map."""
        return self.detector.backbone.channels[-1]

    def encode_patches(self, batch: Batch) -> Tensor:
        """Features (P, F) of all patches of the batch, in the order of its targets."""
        return self._encode(collect_patches(batch, self.device))

    def condition(self, batch: Batch, features: Tensor) -> Condition:
        """Patch i of an image on the queries of group i; fewer than M leave groups without any."""
        return self.patch_queries(features, [len(sample["patches"]) for sample in batch])

    def match(self, output: DetectorOutput, targets: Targets) -> Matches:
        """Over all queries of an image, or within the groups."""
        if self.matching == "all":
            return super().match(output, targets)
        matcher = self.detector.criterion.matcher
        return match_in_groups(matcher, output, targets, self.patch_queries.num_patches)

    @torch.no_grad()
    def localize(self, batch: Sequence[Mapping[str, Any]]) -> list[Found]:
        """Find patches in images: for each, the box of the most confident query of its group.

        The query is chosen by its score in the last layer, whatever its box.

        Args:
            batch: dicts with "image" (3, H, W) uint8 RGB and "patches" (P, 3, S, S) uint8 RGB,
                at most M of them.
        """
        if self.training:
            raise ValueError("localize needs evaluation mode: call eval() first")
        images = self.detector.preprocess(batch)
        counts = [len(sample["patches"]) for sample in batch]
        patches = torch.cat([sample["patches"] for sample in batch]).to(self.device)
        output = self.detector.detect(images, self.patch_queries(self._encode(patches), counts))
        score = class_scores(output.logits[-1], self.detector.criterion.classification)[..., 0]
        boxes = cxcywh_to_xyxy(output.boxes[-1])
        members = members_of_groups(score.shape[1], self.patch_queries.num_patches, self.device)
        own, best = score[:, members].max(dim=2)  # (B, M)
        query = members.expand(len(counts), -1, -1).gather(2, best[..., None])
        boxes = boxes.gather(1, query.expand(-1, -1, 4))
        return [
            Found(boxes[i, :count] * boxes.new_tensor([width, height] * 2), own[i, :count])
            for i, (count, (height, width)) in enumerate(zip(counts, images.sizes, strict=True))
        ]

    def _encode(self, patches: Tensor) -> Tensor:
        """(P, 3, S, S) uint8 -> (P, F); with a gradient where the backbone is trained."""
        if len(patches) == 0:
            return torch.zeros(0, self.num_features, device=self.device)
        pixels = self.detector.normalizer.normalize(patches)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.backbone_is_frozen):
            return self.detector.backbone(pixels)[-1].mean(dim=(2, 3))
