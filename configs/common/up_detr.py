"""UP-DETR: unlabelled images, random patches of them, the paper's augmentation, any detector.

Users set `data.unlabeled` (the images), `model.detector.backbone.weights`, and `data.test` for
images that are not trained on, in which tools/evaluate_patches.py looks for patches. A recipe takes
`data`, `dataloader` and `pretrain(detector)` from here.
"""

import copy

from omegaconf import DictConfig

from predet.d2 import LazyCall as L
from predet.data.augmentation import ResizeShortSide
from predet.data.sources import without_annotations
from predet.pretext.semantic_targets import Objectness
from predet.projects.up_detr import UPDETR

from .pretext import choices, data, dataloader

data.boxes.num = 10  # patches of an image
data.test.update(source="${data.unlabeled.source}", split="val")

dataloader.train.mapper.boxes = choices.boxes.random_patches
dataloader.train.mapper.augmentation = L(ResizeShortSide)(  # not mirrored, not cropped
    short_sides=[320, 336, 352, 368, 400, 416, 432, 448, 464, 480],  # no 384
    max_size=600,
)
dataloader.train.total_batch_size = 256

# For tools/evaluate_patches.py and tools/visualize.py; patches are not detections.
dataloader.test.dataset = L(without_annotations)(dataset=dataloader.test.dataset)
dataloader.test.mapper = copy.deepcopy(dataloader.train.mapper)
dataloader.test.mapper.augmentation.short_sides = [480]
dataloader.test.mapper.patches.photometric = []
dataloader.evaluator = None


def pretrain(detector: DictConfig) -> DictConfig:
    """The meta-architecture that pre-trains `detector` to find patches."""
    return L(UPDETR)(
        detector=detector,
        semantic_target=L(Objectness)(),
        num_patches="${data.boxes.num}",
        add_to="position",
        shuffle=False,
        mask="queries",
        mask_probability=0.1,
        groups_apart=True,
        standardize=False,
        reconstruction_weight=1.0,
        freeze_backbone="auto",
        matching="all",
    )
