"""DETReg: unlabelled images, boxes from any source, embeddings of a frozen encoder, any detector.

Users set `data.unlabeled` (the images), `model.detector.backbone.weights` (the encoder has the
same ones) and, to take other boxes, `dataloader.train.mapper.boxes`. A recipe takes `data`,
`dataloader` and `pretrain(detector)` from here. Sizes and colours are those of the published code.
"""

import copy

from omegaconf import DictConfig

from predet.d2 import LazyCall as L
from predet.data.augmentation import DETRAugmentation
from predet.data.box_picks import TopK
from predet.data.box_sources import SelectiveSearchRegions
from predet.data.loader import build_train_loader
from predet.data.pretext_mapper import PatchMaker, PretextMapper
from predet.data.region_search import RegionSearch
from predet.data.sources import load_images, without_annotations
from predet.data.views import ColorJitter, RandomBlur
from predet.pretext.feature_target import MeanAbsolute
from predet.pretext.region_encoder import RegionEncoder
from predet.pretext.semantic_targets import Objectness
from predet.projects.detreg import DETReg

# SwAV's ResNet-50 of 800 epochs, as https://github.com/facebookresearch/swav publishes it.
SWAV = "weights/swav_800ep_pretrain.pth.tar"

data = dict(
    num_classes=None,  # "object" alone
    class_names=None,
    unlabeled=dict(
        source="datasets/unlabeled",
        split=None,
        image_root=None,
        format=None,  # detected
        folders=None,  # or only images in these: names, or a file of them
        num_images=None,  # or draw so many, by `seed`
        seed=0,
    ),
    patches=dict(size=128),  # pixels of the side of what the encoder sees
)

dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(without_annotations)(
            dataset=L(load_images)(
                source="${data.unlabeled.source}",
                split="${data.unlabeled.split}",
                image_root="${data.unlabeled.image_root}",
                format="${data.unlabeled.format}",
                folders="${data.unlabeled.folders}",
                num_images="${data.unlabeled.num_images}",
                seed="${data.unlabeled.seed}",
            )
        ),
        mapper=L(PretextMapper)(
            augmentation=L(DETRAugmentation)(
                short_sides=[320, 336, 352, 368, 400, 416, 432, 448, 464, 480],  # no 384
                max_size=600,
            ),
            boxes=L(SelectiveSearchRegions)(search=L(RegionSearch)(), pick=L(TopK)(k=30)),
            patches=L(PatchMaker)(
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
            ),
        ),
        total_batch_size=192,
        num_workers=8,
        seed="${train.seed}",
        on_bad_sample="${train.on_bad_sample}",
    ),
    test=None,
)


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
