"""DETReg: the boxes and patches of `pretext.py`, embeddings of a frozen encoder, any detector.

Users set `data.unlabeled` (the images) and `model.detector.backbone.weights` (the encoder has the
same ones). A recipe takes `data`, `dataloader` and `pretrain(detector)` from here.
"""

import copy

from omegaconf import DictConfig

from predet.d2 import LazyCall as L
from predet.pretext.feature_target import MeanAbsolute
from predet.pretext.region_encoder import RegionEncoder
from predet.pretext.semantic_targets import Objectness
from predet.projects.detreg import DETReg

from .pretext import choices, data, dataloader

# SwAV's ResNet-50 of 800 epochs, as https://github.com/facebookresearch/swav publishes it.
SWAV = "weights/swav_800ep_pretrain.pth.tar"

dataloader.train.num_workers = 8
dataloader.test.mapper.augmentation.update(short_sides=[480], max_size=600)
dataloader.evaluator = None  # "object" is no class of the data: tools/evaluate_proposals.py


def pretrain(detector: DictConfig) -> DictConfig:
    """The meta-architecture that pre-trains `detector`; the encoder is its backbone up to res3."""
    encoder = copy.deepcopy(detector.backbone)
    encoder.out_stages = [3]
    encoder.weights = "${model.detector.backbone.weights}"
    return L(DETReg)(
        detector=detector,
        semantic_target=L(Objectness)(),
        patch_encoder=L(RegionEncoder)(backbone=encoder, allow_random=False),
        distance=L(MeanAbsolute)(),
        embedding_weight=1.0,
        freeze_backbone="auto",
    )
