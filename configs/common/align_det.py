"""AlignDet on a box store: images, proposals (Selective Search, perhaps clustered), any detector.

Users set `data.unlabeled` (the images), `data.store` (the boxes) and `data.selection` (which of
them count). Classes are those of the store: cluster ids, or the one class "object". A recipe takes
`data`, `dataloader` and `pretrain(detector)` from here; or `pretrain_pyramid(detector)`, where
contrast stands in the place of classes: RetinaNet, FCOS, Faster and Mask R-CNN.
"""

from omegaconf import DictConfig

from predet.d2 import LazyCall as L
from predet.data.augmentation import Compose, HorizontalFlip, ResizeShortSide
from predet.data.box_sources import AnnotatedBoxes
from predet.data.photometric import OneChange
from predet.data.two_views import TwoViewMapper
from predet.pretext.semantic_targets import KeepClasses, Objectness
from predet.projects.align_det import AlignDet

from .self_training import data, dataloader

data.store = "output/proposals"
data.selection.top_k = 50
data.selection.empty = "drop"  # an image without proposals has nothing to compare

dataloader.train.mapper = L(TwoViewMapper)(
    augmentation=L(Compose)(
        steps=[
            L(ResizeShortSide)(short_sides=list(range(640, 801, 32)), max_size=1333),
            L(HorizontalFlip)(probability=0.5),
        ]
    ),
    boxes=L(AnnotatedBoxes)(),
    photometric=[L(OneChange)()],
)
dataloader.test = None
dataloader.evaluator = None


def pretrain(detector: DictConfig) -> DictConfig:
    """The meta-architecture that pre-trains `detector` on two views."""
    return L(AlignDet)(
        detector=detector,
        semantic_target=L(KeepClasses)(),
        freeze_backbone="auto",
        hidden_dim=256,
        embedding_dim=256,
        temperature=0.5,
        base_momentum=0.996,
        max_regions=None,
        weights={"loss_contrast": 1.0, "detection": 1.0},
        gather_negatives=False,
    )


def pretrain_pyramid(detector: DictConfig, *, hidden_dim: int, max_regions: int) -> DictConfig:
    """The same for a detector with a pyramid, which learns no classes.

    Args:
        hidden_dim: of the projector: what the last classification layer reads.
        max_regions: predictions of a batch in the contrast.
    """
    model = pretrain(detector)
    model.semantic_target = L(Objectness)()
    model.hidden_dim, model.max_regions = hidden_dim, max_regions
    return model


def shorten(model: DictConfig) -> None:
    """For a few hundred updates: smaller embeddings, and a copy that follows at once.

    The copy is some 1 / (1 - momentum) updates behind, 250 as published, 33 here.
    """
    model.embedding_dim, model.base_momentum = 128, 0.97
