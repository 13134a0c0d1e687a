"""A loss that makes queries tell the features of the patches that they are matched to.

UP-DETR (section 3.1) reconstructs what its own backbone says of a patch, DETReg (section 5) what a
frozen encoder says of a region. Both are a head on the decoder's output, a distance, and the
layers that have the loss; `Pretraining` brings the features.

Legend: B batch, Q queries, D channels, L decoder layers, P matched pairs, M boxes of all images, F
features of a patch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from predet.layers.mlp import MLP
from predet.modeling.criterion import average_num_boxes
from predet.modeling.matcher import Matches
from predet.modeling.outputs import DetectorOutput
from predet.modeling.targets import Targets

Distance = Callable[[Tensor, Tensor], Tensor]  # (..., F), (..., F) -> (...)

LAYERS = ("last", "all")


class MeanAbsolute:
    """L1 distance over F: with the mean over pairs, DETReg's code."""

    def __call__(self, predicted: Tensor, wanted: Tensor) -> Tensor:
        return (predicted - wanted).abs().mean(dim=-1)


class SummedAbsolute:
    """L1 distance: DETReg's paper, equation 4. F times `MeanAbsolute`."""

    def __call__(self, predicted: Tensor, wanted: Tensor) -> Tensor:
        return (predicted - wanted).abs().sum(dim=-1)


class NormalizedSquared:
    """Squared Euclidean distance of unit vectors: UP-DETR's equation 4. Between 0 and 4."""

    def __call__(self, predicted: Tensor, wanted: Tensor) -> Tensor:
        difference = F.normalize(predicted, dim=-1) - F.normalize(wanted, dim=-1)
        return difference.square().sum(dim=-1)


class FeatureTarget(nn.Module):
    """The loss `loss_feature` of matched queries, `loss_feature_i` of layer i before the last.

    Queries that only train (the one-to-many group of H-Deformable DETR) and proposals of the
    encoder have no such loss. As box losses do, it divides the sum over matched pairs by the
    number of boxes averaged over the parts of the step (decision 10).

    Args:
        hidden_dim: D of the detector.
        num_features: F.
        distance: of what a query tells and the features of its patch.
        layers: "last" or "all", the decoder layers that have the loss.
        num_layers: linear layers of the head, `hidden_dim` wide between them.
        weight: of the loss.
    """

    def __init__(
        self,
        *,
        hidden_dim: int,
        num_features: int,
        distance: Distance,
        layers: Literal["last", "all"] = "last",
        num_layers: int = 2,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if layers not in LAYERS:
            raise ValueError(f"layers must be one of {LAYERS}, got {layers!r}")
        if not weight >= 0:
            raise ValueError(f"the weight of a feature target must not be negative, got {weight}")
        self.hidden_dim = hidden_dim
        self.num_features = num_features
        self.distance = distance
        self.layers = layers
        self.weight = weight
        self.head = MLP(
            input_dim=hidden_dim,
            hidden_dim=hidden_dim,
            output_dim=num_features,
            num_layers=num_layers,
        )

    def forward(
        self, output: DetectorOutput, targets: Targets, matches: Matches, features: Tensor
    ) -> dict[str, Tensor]:
        """Weighted losses by name, scalars in fp32.

        Args:
            output: of the detector, on the whole batch.
            targets: of the same images.
            matches: of all decoder layers.
            features: (M, F), of the patch of each target.
        """
        assert features.shape == (len(targets.boxes), self.num_features)
        num_layers = len(output.hidden)
        chosen = range(num_layers) if self.layers == "all" else range(num_layers - 1, num_layers)
        layer = torch.arange(chosen.start, chosen.stop, device=features.device)[:, None]
        hidden = output.hidden[layer, matches.image[None], matches.query[chosen.start :]]
        predicted = self.predict(hidden)  # (layers with the loss, P, F)
        # A target, also where a backbone that is trained has made it: else it would collapse.
        wanted = features.detach()[matches.target[chosen.start :]]
        with torch.autocast(features.device.type, enabled=False):
            # Of no pair at all the sums are zero, and still lead back to the head.
            distances = self.distance(predicted.float(), wanted.float()).sum(dim=1)
            losses = self.weight * distances / average_num_boxes(targets, features.device)
        return {
            "loss_feature" if number == num_layers - 1 else f"loss_feature_{number}": loss
            for number, loss in zip(chosen, losses, strict=True)
        }

    def predict(self, hidden: Tensor) -> Tensor:
        """What queries (..., D) tell of their patch: (..., F)."""
        return self.head(hidden)

    def check_widths(self, hidden_dim: int, num_features: int | None) -> None:
        """See that the head fits a detector of `hidden_dim` and an encoder of `num_features`.

        Raises:
            ValueError: it does not, or there is no encoder (None).
        """
        if num_features is None:
            raise ValueError("a feature target needs a patch_encoder, whose features it is for")
        if (hidden_dim, num_features) != (self.hidden_dim, self.num_features):
            raise ValueError(
                f"the feature target maps {self.hidden_dim} channels to {self.num_features} "
                f"features, but the detector has {hidden_dim} channels and the patch encoder gives "
                f"{num_features} features: set hidden_dim={hidden_dim}, "
                f"num_features={num_features}"
            )
