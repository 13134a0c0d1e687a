"""SwAV on a folder of images: two large views and six small ones of each, any backbone.

Users set `data.unlabeled` (the images) and `data.view` (sizes and shares of the views). Sizes,
shares, temperature and codes are the paper's; colours are those of `common/image_domain.py`. A
recipe takes `data`, `dataloader`, `optimizer` and `pretrain(backbone)` from here.
"""

import copy

from omegaconf import DictConfig

from predet.d2 import LazyCall as L
from predet.projects.image_domain import SwAV

from .image_domain import data, dataloader, optimizer

data.view = dict(size=224, area=[0.14, 1.0], small_size=96, small_area=[0.05, 0.14])

_large = dataloader.train.mapper.views[0]
_small = copy.deepcopy(_large)
_small.size, _small.area = "${data.view.small_size}", "${data.view.small_area}"
dataloader.train.mapper.views = [_large] * 2 + [_small] * 6


def pretrain(backbone: DictConfig) -> DictConfig:
    """The meta-architecture that pre-trains `backbone`."""
    return L(SwAV)(
        backbone=backbone,
        num_prototypes=3000,
        hidden_dim=2048,
        projection_dim=128,
        temperature=0.1,
        epsilon=0.05,
        iterations=3,
        queue_length=0,
        queue_start=0,
        frozen_passes=0,
    )
