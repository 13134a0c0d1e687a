"""Image-domain pre-training on a folder of images: two views of each, any backbone.

Users set `data.unlabeled` (the images) and `data.view` (what a view is). Annotations, if there are
any, are not looked at. A recipe takes `data`, `dataloader`, `optimizer` and `pretrain(backbone)`
from here; the loss weights, the temperature and the colours are ours.
"""

import torch
from omegaconf import DictConfig

from predet.d2 import LazyCall as L
from predet.data.loader import build_train_loader
from predet.data.views import ColorJitter, MultiViewMapper, RandomBlur, RandomView
from predet.engine.optim import parameter_groups
from predet.projects.image_domain import DenseContrast

from .unlabeled import images, unlabeled

unlabeled.update(num_images=None, seed=0)  # or draw so many, by `seed`
images.update(num_images="${data.unlabeled.num_images}", seed="${data.unlabeled.seed}")

data = dict(
    unlabeled=unlabeled,
    # Side in pixels, and least and greatest share of the image. Small shares make views of
    # single objects, which is what a detector has to tell apart.
    view=dict(size=224, area=[0.08, 0.6]),
)

_view = L(RandomView)(
    size="${data.view.size}",
    area="${data.view.area}",
    # Weak: colours often tell classes apart, and a strong jitter teaches not to see them.
    photometric=[
        L(ColorJitter)(
            brightness=0.3, contrast=0.3, saturation=0.2, hue=0.02, gray_probability=0.05
        ),
        L(RandomBlur)(sigma=[0.1, 1.0], probability=0.3),
    ],
)

dataloader = dict(
    train=L(build_train_loader)(
        dataset=images,
        mapper=L(MultiViewMapper)(views=[_view, _view]),
        total_batch_size=64,
        num_workers=8,
        seed="${train.seed}",
        on_bad_sample="${train.on_bad_sample}",
    ),
    test=None,
)

optimizer = L(torch.optim.AdamW)(
    params=L(parameter_groups)(), lr=1e-3, weight_decay=0.05, fused=True
)


def pretrain(backbone: DictConfig) -> DictConfig:
    """The meta-architecture that pre-trains `backbone`."""
    return L(DenseContrast)(backbone=backbone, weights={"loss_global": 1.0, "loss_local": 1.0})
