"""DETReg: Unsupervised Pretraining with Region Priors for Object Detection (Bar et al., CVPR 2022).

Section 5. A detector learns where region proposals are, that each is an object, and what a frozen
encoder says of it. Where the boxes come from is chosen on the side of the data
(`predet.data.box_sources`); Selective Search is the paper's. What survives is `DETReg.detector`.

Deviations from the published code (`docs/decisions/0018-detreg.md`): the class head has as many
outputs as there are classes, one with objectness alone, instead of those of COCO; two-stage
detectors work, the encoder's proposals learning objectness and boxes; losses are normalised over
the whole step.
"""

from __future__ import annotations

from typing import Literal

from predet.modeling.detector import Detector
from predet.pretext.feature_target import Distance, FeatureTarget
from predet.pretext.pretraining import Pretraining
from predet.pretext.region_encoder import RegionEncoder
from predet.pretext.semantic_targets import SemanticTarget


class DETReg(Pretraining):
    """Boxes, classes and embeddings of regions, for any detector of the DETR family.

    The embedding's head is as wide as the detector and as the encoder's features.

    Args:
        detector: what is trained.
        semantic_target: `Objectness` in the paper.
        patch_encoder: frozen; what it says of a region is what the region's query learns to tell.
        distance: of embeddings. `MeanAbsolute` is the code's, `SummedAbsolute` the paper's
            equation 4.
        embedding_weight: of the embedding loss, lambda_e of the paper. 0 leaves the loss out, with
            its head and its encoder.
        layers: "last" or "all", the decoder layers with an embedding loss.
        num_layers: linear layers of the embedding's head: 2 in the code, 3 in the paper's text.
        freeze_backbone: as of `Pretraining`; the paper's is frozen, and pre-trained.
    """

    def __init__(
        self,
        *,
        detector: Detector,
        semantic_target: SemanticTarget,
        patch_encoder: RegionEncoder,
        distance: Distance,
        embedding_weight: float = 1.0,
        layers: Literal["last", "all"] = "last",
        num_layers: int = 2,
        freeze_backbone: bool | Literal["auto"] = "auto",
    ) -> None:
        embedding = FeatureTarget(
            hidden_dim=detector.transformer.hidden_dim,
            num_features=patch_encoder.num_features,
            distance=distance,
            layers=layers,
            num_layers=num_layers,
            weight=embedding_weight,
        )
        super().__init__(
            detector=detector,
            semantic_target=semantic_target,
            patch_encoder=patch_encoder if embedding_weight else None,
            feature_target=embedding if embedding_weight else None,
            freeze_backbone=freeze_backbone,
        )
