"""Data of unsupervised pre-training: images alone, a box source, patches, augmentation.

Users set `data.unlabeled` (the images), `data.boxes.num` (boxes of an image) and, for boxes out of
a store, `data.store`. A recipe takes `choices`, `data`, `dataloader` and `pretrain(detector)` from
here, or the latter from the recipe of a method. `choices` is what can be put in place of the boxes,
of what chooses among them, and of the data set, on the command line too:

    dataloader.train.mapper.boxes='${choices.boxes.edge_boxes}'
    dataloader.train.mapper.boxes.pick='${choices.pick.importance}'

Boxes that belong to the data set need one that has them:

    dataloader.train.dataset='${choices.dataset.annotated}'
    dataloader.train.mapper.boxes='${choices.boxes.of_dataset}'
"""

from omegaconf import DictConfig

from predet.d2 import LazyCall as L
from predet.data.augmentation import DETRAugmentation
from predet.data.box_picks import ImportanceSampling, RandomK, TopK
from predet.data.box_sources import AnnotatedBoxes, RandomPatches
from predet.data.edge_boxes import EdgeBoxes, EdgeBoxSearch
from predet.data.pretext_mapper import PatchMaker, PretextMapper
from predet.data.pseudo_labels import pseudo_labelled
from predet.data.region_search import RegionSearch
from predet.data.sources import without_annotations
from predet.data.stored_boxes import RegionsOfOtherImages, stored_or_searched
from predet.data.views import ColorJitter, RandomBlur
from predet.pretext.pretraining import Pretraining
from predet.pretext.semantic_targets import Objectness

from .data import data, dataloader
from .unlabeled import images as annotated
from .unlabeled import unlabeled

data.unlabeled = unlabeled
data.store = None  # boxes that were found before; without them regions are searched
data.boxes = dict(num=30)  # of an image
data.patches = dict(size=128)  # pixels of their sides
del data.train

_top_k = L(TopK)(k="${data.boxes.num}")
# DETReg's own search; tools/extract_proposals.py --recipe detreg makes a store by it.
_search = L(RegionSearch)(mode="fast", resize="128x128", channel_order="bgr")
_stored = dict(dataset=annotated, store="${data.store}", top_k="${data.boxes.num}")
choices = dict(
    boxes=dict(
        regions=L(stored_or_searched)(store="${data.store}", search=_search, pick=_top_k),
        # The control of DETReg's Table 5: each time the regions of another image of the store.
        other_regions=L(RegionsOfOtherImages)(store="${data.store}", search=_search, pick=_top_k),
        edge_boxes=L(EdgeBoxes)(search=L(EdgeBoxSearch)(), pick=_top_k),
        random_patches=L(RandomPatches)(num_patches="${data.boxes.num}"),
        of_dataset=L(AnnotatedBoxes)(),
    ),
    pick=dict(
        top_k=_top_k,
        random_k=L(RandomK)(k="${data.boxes.num}"),
        importance=L(ImportanceSampling)(k="${data.boxes.num}"),
    ),
    dataset=dict(
        without_annotations=L(without_annotations)(dataset=annotated),
        annotated=annotated,
        of_a_store=L(pseudo_labelled)(**_stored, score_threshold="auto", shuffle_seed=None),
        # A control: every image has the boxes of another one.
        of_other_images=L(pseudo_labelled)(
            **_stored, score_threshold="auto", shuffle_seed="${train.seed}"
        ),
    ),
)

# Colours and blur of UP-DETR's code, which DETReg's took over.
patches = L(PatchMaker)(
    size="${data.patches.size}",
    photometric=[
        L(ColorJitter)(
            brightness=0.4,
            contrast=0.4,
            saturation=0.4,
            hue=0.1,
            probability=0.8,
            gray_probability=0.2,
        ),
        L(RandomBlur)(sigma=[0.1, 2.0], probability=0.5),
    ],
)

dataloader.train.dataset = choices["dataset"]["without_annotations"]
dataloader.train.mapper = L(PretextMapper)(
    # DETReg's, as its code has it: there is no 384.
    augmentation=L(DETRAugmentation)(
        short_sides=[320, 336, 352, 368, 400, 416, 432, 448, 464, 480],
        max_size=600,
        crop_short_sides=[400, 500, 600],
        crop_size=[384, 600],
        flip_probability=0.5,
    ),
    boxes=choices["boxes"]["regions"],
    patches=patches,
)
dataloader.train.total_batch_size = 192


def pretrain(detector: DictConfig) -> DictConfig:
    """The meta-architecture that pre-trains `detector` on these boxes, objects all of them."""
    return L(Pretraining)(
        detector=detector, semantic_target=L(Objectness)(), freeze_backbone="auto"
    )
