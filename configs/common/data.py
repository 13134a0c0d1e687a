"""Labelled data: where it lies, DETR's augmentation, loaders and COCO evaluation.

Users set the keys of `data`; the loaders follow them. Any format that predet reads will do.
"""

from predet.d2 import LazyCall as L
from predet.data.augmentation import DETRAugmentation, ResizeShortSide
from predet.data.loader import build_test_loader, build_train_loader
from predet.data.mapper import DetectionMapper
from predet.data.sources import load_images
from predet.evaluation.coco import COCOEvaluator

data = dict(
    num_classes=None,  # taken from the training data
    class_names=None,
    train=dict(
        source="datasets/coco",
        split="train2017",
        image_root=None,
        format=None,  # detected
        num_images=None,  # or draw so many ...
        fraction=None,  # ... or such a part, by `seed`
        seed=0,
    ),
    test=dict(source="datasets/coco", split="val2017", image_root=None, format=None),
)

dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(load_images)(
            source="${data.train.source}",
            split="${data.train.split}",
            image_root="${data.train.image_root}",
            format="${data.train.format}",
            num_images="${data.train.num_images}",
            fraction="${data.train.fraction}",
            seed="${data.train.seed}",
        ),
        mapper=L(DetectionMapper)(augmentation=L(DETRAugmentation)(), training=True),
        total_batch_size=16,
        num_workers=4,
        seed="${train.seed}",
        on_bad_sample="${train.on_bad_sample}",
    ),
    test=L(build_test_loader)(
        dataset=L(load_images)(
            source="${data.test.source}",
            split="${data.test.split}",
            image_root="${data.test.image_root}",
            format="${data.test.format}",
        ),
        mapper=L(DetectionMapper)(
            augmentation=L(ResizeShortSide)(short_sides=[800], max_size=1333), training=False
        ),
        batch_size=1,
        num_workers=4,
        on_bad_sample="${train.on_bad_sample}",
    ),
    evaluator=L(COCOEvaluator)(),
)
