"""Self-training on a box store: unlabelled images, a teacher's boxes, any detector.

Users set `data.unlabeled` (the images), `data.store` (the boxes) and `data.selection` (which of
them count). A recipe takes `data`, `dataloader` and `pretrain(detector)` from here.
"""

from omegaconf import DictConfig

from predet.d2 import LazyCall as L
from predet.data.pseudo_labels import pseudo_labelled
from predet.pretext.semantic_targets import KeepClasses
from predet.projects.self_training import SelfTraining

from .data import data, dataloader
from .unlabeled import images, unlabeled

data.unlabeled = unlabeled
data.store = "output/pseudo_labels"
# "auto": what pseudo_label.py was told, else 30 boxes and no threshold.
# A number as shuffle_seed gives every image the boxes of another one: a control.
data.selection = dict(top_k="auto", score_threshold="auto", empty="keep", shuffle_seed=None)
del data.train

dataloader.train.dataset = L(pseudo_labelled)(
    dataset=images,
    store="${data.store}",
    top_k="${data.selection.top_k}",
    score_threshold="${data.selection.score_threshold}",
    empty="${data.selection.empty}",
    shuffle_seed="${data.selection.shuffle_seed}",
)


def pretrain(detector: DictConfig) -> DictConfig:
    """The meta-architecture that pre-trains `detector` on the store's boxes and classes."""
    return L(SelfTraining)(
        detector=detector, semantic_target=L(KeepClasses)(), freeze_backbone="auto"
    )
