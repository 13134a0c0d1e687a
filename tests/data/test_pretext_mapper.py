"""Samples of pre-training: boxes, patches and what augmentation does to them."""

from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest
import torch

from predet.data.augmentation import Compose, DETRAugmentation, HorizontalFlip, RandomCrop
from predet.data.box_sources import AnnotatedBoxes, RandomPatches
from predet.data.formats import load_dataset
from predet.data.images import BadSampleError, read_image
from predet.data.loader import build_train_loader
from predet.data.mapper import DetectionMapper
from predet.data.pretext_mapper import PatchMaker, PretextMapper
from predet.data.sources import without_annotations
from predet.data.views import ColorJitter, RandomBlur

NOTHING = Compose(steps=[])
SMALL = DETRAugmentation(
    short_sides=(20, 24, 28), max_size=64, crop_short_sides=(24,), crop_size=(10, 16)
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def record(coco_content, write_coco):
    """24 x 32 pixels, two boxes."""
    return load_dataset(write_coco(coco_content))[1]


def test_annotated_boxes_without_patches_are_the_detection_mapper(record):
    expected = DetectionMapper(augmentation=SMALL, training=True)(record, rng(3))
    item = PretextMapper(augmentation=SMALL, boxes=AnnotatedBoxes())(record, rng(3))
    assert item.keys() == expected.keys() | {"boxes_missing"}
    assert torch.equal(item["image"], expected["image"])
    assert torch.equal(item["instances"].gt_boxes.tensor, expected["instances"].gt_boxes.tensor)
    assert torch.equal(item["instances"].gt_classes, expected["instances"].gt_classes)


def test_patches_are_cut_and_resized_whatever_their_shape():
    image = rng().integers(0, 256, (60, 80, 3), np.uint8)
    boxes = np.array([[10, 20, 42, 52], [3, 5, 7, 50], [0, 0, 80, 60]], np.float32)
    patches = PatchMaker(size=32)(image, boxes, rng())
    assert (patches.dtype, tuple(patches.shape)) == (torch.uint8, (3, 3, 32, 32))
    found = patches.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(found[0], image[20:52, 10:42])  # as large as the patch
    for patch, (x1, y1, x2, y2) in zip(found[1:], boxes[1:].astype(int), strict=True):
        assert abs(patch.astype(float) - brute_resize(image[y1:y2, x1:x2], 32)).max() <= 1.5


def brute_resize(image: np.ndarray, size: int) -> np.ndarray:
    """One axis after the other: averages below a half, else linear between centres of pixels."""
    result = image.astype(float)
    for axis in (0, 1):
        old = result.shape[axis]
        weights = np.zeros((size, old))
        for i in range(size):
            if old > 2 * size:
                low, high = i * old / size, (i + 1) * old / size
                cover = np.minimum(np.arange(old) + 1, high) - np.maximum(np.arange(old), low)
                weights[i] = np.maximum(cover, 0) * size / old
            else:
                at = np.clip((i + 0.5) * old / size - 0.5, 0, old - 1)
                weights[i] = np.maximum(1 - abs(np.arange(old) - at), 0)
        result = np.moveaxis(np.tensordot(weights, result, (1, axis)), 0, axis)
    return result


def test_a_long_thin_patch_is_averaged_along_its_length():
    """Stripes finer than the patch can show must become gray, not stripes of another width."""
    image = np.zeros((8, 320, 3), np.uint8)
    image[:, ::2] = 200
    patch = PatchMaker(size=32)(image, np.array([[0, 0, 320, 8]], np.float32), rng())
    assert patch.float().std() < 1
    assert abs(patch.float().mean() - 100) < 1


@pytest.mark.parametrize(
    ("box", "part"),
    [
        ([3.4, 5.6, 9.5, 11.2], (slice(6, 11), slice(3, 10))),
        ([4.2, 5.1, 4.4, 5.3], (slice(5, 6), slice(4, 5))),  # less than a pixel
        ([-5, 20, 4, 99], (slice(20, 24), slice(0, 4))),
        ([31.8, 23.9, 40, 40], (slice(23, 24), slice(31, 32))),
    ],
)
def test_borders_of_patches_are_rounded_and_kept_inside(box, part):
    image = rng().integers(0, 256, (24, 32, 3), np.uint8)
    patch = PatchMaker(size=16)(image, np.array([box], np.float32), rng())[0]
    expected = cv2.resize(image[part], (16, 16), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(patch.numpy().transpose(1, 2, 0), expected)


def test_patches_come_from_the_original_and_follow_their_boxes_through_a_crop(record):
    """Mirrored and cropped; each row's patch is that of the box which the row was made of."""

    class Grid:
        num_boxes = 14

        def __call__(self, image, record, rng):
            x, y = np.meshgrid(np.arange(0, 32, 8), np.arange(0, 24, 8))
            corners = np.stack([x.ravel(), y.ravel()], axis=1)
            return np.concatenate([corners, corners + 8], axis=1).astype(np.float32), np.arange(12)

    image = read_image(record.path)
    steps = [HorizontalFlip(probability=1.0), RandomCrop(min_size=9, max_size=15)]
    mapper = PretextMapper(
        augmentation=Compose(steps=steps), boxes=Grid(), patches=PatchMaker(size=8)
    )
    counts = set()
    for seed in range(10):
        item = mapper(record, rng(seed))
        instances, patches = item["instances"], item["patches"]
        assert len(patches) == len(instances)
        assert item["boxes_missing"] == 2  # of those asked for; what a crop cuts off is not missing
        counts.add(len(instances))
        for row, patch in zip(instances.gt_classes.tolist(), patches, strict=True):
            x, y = 8 * (row % 4), 8 * (row // 4)
            np.testing.assert_array_equal(
                patch.numpy().transpose(1, 2, 0), image[y : y + 8, x : x + 8]
            )
    assert len(counts) > 1
    assert max(counts) < 12


def test_photometric_changes_reach_patches_only(record):
    changes = [ColorJitter(probability=1.0), RandomBlur(probability=1.0)]
    plain = PretextMapper(
        augmentation=NOTHING, boxes=RandomPatches(num_patches=4), patches=PatchMaker(size=16)
    )(record, rng(1))
    changed = PretextMapper(
        augmentation=NOTHING,
        boxes=RandomPatches(num_patches=4),
        patches=PatchMaker(size=16, photometric=changes),
    )(record, rng(1))
    assert torch.equal(plain["image"], changed["image"])
    assert torch.equal(plain["instances"].gt_boxes.tensor, changed["instances"].gt_boxes.tensor)
    difference = (plain["patches"].float() - changed["patches"].float()).abs().mean(dim=(1, 2, 3))
    assert (difference > 2).all()


def test_no_box_gives_no_patch(coco_content, write_coco):
    record = load_dataset(write_coco(coco_content))[2]  # a crowd only
    item = PretextMapper(augmentation=NOTHING, boxes=AnnotatedBoxes(), patches=PatchMaker(size=16))(
        record, rng()
    )
    assert len(item["instances"]) == 0
    assert tuple(item["patches"].shape) == (0, 3, 16, 16)


def make_loader(dataset, **options):
    mapper = PretextMapper(
        augmentation=SMALL,
        boxes=RandomPatches(num_patches=4),
        patches=PatchMaker(size=16, photometric=[ColorJitter(), RandomBlur()]),
    )
    return build_train_loader(
        dataset=dataset,
        mapper=pickle.loads(pickle.dumps(mapper)),
        **{"total_batch_size": 4, "num_workers": 0, "seed": 1} | options,
    )


def test_batches_are_a_function_of_seed_epoch_and_image(image_folder):
    dataset = without_annotations(load_dataset(image_folder))
    assert dataset.class_names == ("object",)
    found = []
    for options in ({}, {"num_workers": 2}, {"seed": 2}):
        stream = make_loader(dataset, **options).batches(1)
        found.append([next(stream) for _ in range(2)])
        stream.close()

    def same(first, second) -> bool:
        pairs = [
            pair
            for batches in zip(first, second, strict=True)
            for pair in zip(*batches, strict=True)
        ]
        return all(
            a["patches"].shape == b["patches"].shape
            and a["patches"].equal(b["patches"])
            and a["image"].equal(b["image"])
            and a["instances"].gt_boxes.tensor.equal(b["instances"].gt_boxes.tensor)
            for a, b in pairs
        )

    assert same(found[0], found[1])
    assert not same(found[0], found[2])
    assert not same(found[0][:1], found[0][1:])


def test_images_too_small_follow_the_data_policy(image_folder, write_image):
    write_image(image_folder / "small.png", height=12, width=40)
    dataset = without_annotations(load_dataset(image_folder))
    loader = make_loader(dataset, total_batch_size=9)
    stream = loader.batches(0)
    batch = next(stream)
    stream.close()
    assert len(batch) == 9
    assert list(loader.bad_samples().reasons) == ["small.png"]
    stream = make_loader(dataset, total_batch_size=9, on_bad_sample="error").batches(0)
    with pytest.raises(BadSampleError, match=r"small\.png: too small for random patches"):
        next(stream)


def test_a_source_of_annotations_refuses_data_without_boxes(image_folder):
    dataset = load_dataset(image_folder)
    mapper = PretextMapper(augmentation=NOTHING, boxes=AnnotatedBoxes())
    with pytest.raises(ValueError, match="has no annotations"):
        build_train_loader(
            dataset=dataset, mapper=mapper, total_batch_size=2, num_workers=0, seed=0
        )


def test_bad_size_is_named():
    with pytest.raises(ValueError, match="size must be at least one pixel, got 0"):
        PatchMaker(size=0)
