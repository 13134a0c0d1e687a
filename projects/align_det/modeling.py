"""AlignDet: box-domain pre-training (Li et al., ICCV 2023, arXiv 2307.11077, section 3.2).

Two views of an image with the same proposals. The online detector learns on the first view to
predict the boxes, and that its predictions of a box are like those which its momentum copy makes of
the same box on the second view, and unlike all other predictions of the batch. The backbone is
frozen if it is pre-trained; everything else is trained. What survives is `AlignDet.detector`.

Deviation from the published code: one matching decides which query belongs to which box, for the
boxes' losses and for the contrast (decision 20).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from predet.modeling.regions import RegionProjector, Regions
from predet.pretext.pretraining import Pretraining
from predet.pretext.semantic_targets import Batch, SemanticTarget
from predet.projects.align_det.contrast import instance_contrast, of_other_processes
from predet.projects.align_det.momentum import MomentumCopy, momentum_at

WEIGHTS = {"loss_contrast": 1.0, "detection": 1.0}


class AlignDet(Pretraining):
    """Meta-architecture of box-level contrast and regression, for any detector with `regions`.

    After each optimiser step its trainer calls `after_update`, by which the momentum copy moves.

    Args:
        detector: what is trained: gives the losses of its boxes, and its predictions with the
            instances that they belong to.
        semantic_target: what the classes of the boxes become: cluster ids (`KeepClasses`) or
            objectness alone. Detectors whose `regions` have no class loss do not look at them.
        freeze_backbone: as of `Pretraining`.
        hidden_dim: of the projector of the predictions, two linear layers.
        embedding_dim: what is compared.
        temperature: of the contrast.
        base_momentum: of the copy at the first step; it rises to 1.
        max_regions: the most predictions of a batch in the contrast, those of instances first;
            None takes all (DETR family).
        weights: of `loss_contrast`, and of all losses of the detector ("detection"); 0 takes one
            side away. Not both can be 0.
        gather_negatives: compare with the predictions of all processes, not of this one alone.
    """

    def __init__(
        self,
        *,
        detector: nn.Module,
        semantic_target: SemanticTarget,
        freeze_backbone: bool | Literal["auto"] = "auto",
        hidden_dim: int = 256,
        embedding_dim: int = 256,
        temperature: float = 0.5,
        base_momentum: float = 0.996,
        max_regions: int | None = None,
        weights: Mapping[str, float] = WEIGHTS,
        gather_negatives: bool = False,
    ) -> None:
        _check(weights, temperature, base_momentum)
        super().__init__(
            detector=detector, semantic_target=semantic_target, freeze_backbone=freeze_backbone
        )
        self.projector = RegionProjector(
            channels=detector.region_channels,
            hidden_dim=hidden_dim,
            embedding_dim=embedding_dim,
            slots=detector.region_slots,
        )
        detector.freeze_unused_by_regions()
        self.temperature, self.base_momentum = temperature, base_momentum
        self.max_regions, self.weights = max_regions, dict(weights)
        self.gather_negatives = gather_negatives
        self.target = MomentumCopy(self._sources)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._has_started = False
        self.train(self.training)

    def forward(self, batch: Batch) -> dict[str, Tensor] | list[dict[str, Any]]:
        """In training the weighted losses of both views, else the detector's detections.

        Args:
            batch: as of `TwoViewMapper`: "views" of each image, two dicts with "image" and
                "instances", row i of both being the same instance.

        Returns:
            `loss_contrast`, and the losses of the online detector on the first view.

        Raises:
            ValueError: an image has not two views, or they have not the same instances.
        """
        if not self.training:
            return self.detector(batch)
        self._start()
        views = [self.semantic_target(view) for view in split_views(batch)]
        online = self.detector.regions(views[0], max_regions=self.max_regions)
        queries = self.projector(online.features, online.slots)
        keys, key_instances = self._look_back(views[1])
        others = of_other_processes(torch.cat([queries, keys])) if self.gather_negatives else None
        contrast = instance_contrast(
            queries,
            online.instances,
            keys,
            key_instances,
            temperature=self.temperature,
            others=others,
        )
        losses = {n: self.weights["detection"] * loss for n, loss in online.losses.items()}
        return {**losses, "loss_contrast": self.weights["loss_contrast"] * contrast}

    def after_update(self, step: int, max_iter: int) -> None:
        """Move the momentum copy; called after optimiser step `step` (from 0) of `max_iter`."""
        momentum = momentum_at(step, max_iter, base=self.base_momentum)
        self.target.follow(self._sources, momentum)
        self.updates += 1

    @property
    def _sources(self) -> dict[str, nn.Module]:
        """What the momentum copy follows."""
        return {"detector": self.detector, "projector": self.projector}

    @torch.no_grad()
    def _look_back(self, view: Batch) -> tuple[Tensor, Tensor]:
        """What the momentum copy says of a view: embeddings (K, D) and their instances (K,)."""
        regions: Regions = self.target["detector"].regions(view, max_regions=self.max_regions)
        return self.target["projector"](regions.features, regions.slots), regions.instances

    def _start(self) -> None:
        """Begin with a copy of the weights that training begins with, given ones if there are."""
        if not self._has_started and self.updates == 0:
            self.target.reset(self._sources)
        self._has_started = True


def split_views(batch: Sequence[Mapping[str, Any]]) -> tuple[Batch, Batch]:
    """The batches of the first views and of the second ones.

    Raises:
        ValueError: an image has not two views, or they have not the same number of instances.
    """
    for index, sample in enumerate(batch):
        where = sample.get("file_name", f"image {index} of the batch")
        if "views" not in sample:
            raise ValueError(
                f"{where}: AlignDet needs two 'views', got keys {sorted(sample)}; "
                "TwoViewMapper makes them"
            )
        counts = [len(view["instances"]) for view in sample["views"]]
        if len(counts) != 2 or counts[0] != counts[1]:
            raise ValueError(
                f"{where}: expected two views with the same instances, got views with {counts}: "
                "a proposal that is not in both must be left out of both"
            )
    first, second = ([{**s, **s["views"][number]} for s in batch] for number in range(2))
    return first, second


def _check(weights: Mapping[str, float], temperature: float, base_momentum: float) -> None:
    if set(weights) != set(WEIGHTS) or min(weights.values()) < 0 or not any(weights.values()):
        raise ValueError(
            f"weights: expected {' and '.join(WEIGHTS)}, neither negative nor both 0, got "
            f"{dict(weights)}"
        )
    if temperature <= 0 or not 0 <= base_momentum <= 1:
        raise ValueError(
            "expected temperature > 0 and base_momentum in [0, 1], got "
            f"{temperature} and {base_momentum}"
        )
