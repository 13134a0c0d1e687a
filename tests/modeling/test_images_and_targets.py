"""The way into a detector: normalisation, padding, masks, targets."""

from __future__ import annotations

import pytest
import torch

from predet.d2 import Boxes, Instances
from predet.modeling.images import ImageNormalizer, resize_pad_mask
from predet.modeling.targets import Targets, prepare_targets


def test_images_are_normalised_and_padded_with_zero():
    normalizer = ImageNormalizer(pixel_mean=(10, 20, 30), pixel_std=(1, 2, 4))
    tall = torch.full((3, 5, 2), 50, dtype=torch.uint8)
    wide = torch.full((3, 3, 4), 50, dtype=torch.uint8)
    batch = normalizer([tall, wide])
    assert batch.pixels.shape == (2, 3, 5, 4)
    assert batch.sizes == ((5, 2), (3, 4))
    assert batch.pixels[0, :, :, :2].unique().tolist() == [5.0, 15.0, 40.0]
    assert batch.pixels[0, :, 4, 1].tolist() == [40.0, 15.0, 5.0]
    assert not batch.pixels[0, :, :, 2:].any()
    assert not batch.pixels[1, :, 3:].any()
    assert batch.pad_mask[0, :, :2].sum() == 0
    assert batch.pad_mask[0, :, 2:].all()
    assert batch.pad_mask[1, 3:].all()


def test_default_normalisation_is_that_of_imagenet():
    normalizer = ImageNormalizer()
    image = torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None, None]
    expected = [
        (124 / 255 - 0.485) / 0.229,
        (116 / 255 - 0.456) / 0.224,
        (104 / 255 - 0.406) / 0.225,
    ]
    found = normalizer([image]).pixels.flatten()
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=0)
    assert not normalizer.state_dict()  # not a weight: never in a checkpoint


def test_size_divisibility():
    batch = ImageNormalizer(size_divisibility=32)([torch.zeros(3, 33, 64), torch.zeros(3, 10, 10)])
    assert batch.pixels.shape == (2, 3, 64, 64)
    assert (~batch.pad_mask).flatten(1).sum(1).tolist() == [33 * 64, 100]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "at least one image"),
        ([torch.zeros(3, 4, 4), torch.zeros(4, 4)], r"image 1 .*got \(4, 4\)"),
        ([torch.zeros(4, 4, 3)], r"got \(4, 4, 3\)"),
        ([torch.zeros(3, 0, 4)], r"got \(3, 0, 4\)"),
    ],
)
def test_what_is_no_image_is_named(images, message):
    with pytest.raises(ValueError, match=message):
        ImageNormalizer()(images)


def test_masks_follow_the_nearest_pixel():
    mask = torch.ones(1, 8, 8, dtype=torch.bool)
    mask[0, :5, :3] = False
    # Rows 0, 2, 4, 6 and columns 0, 2, 4, 6 are looked at.
    expected = torch.ones(4, 4, dtype=torch.bool)
    expected[:3, :2] = False
    assert torch.equal(resize_pad_mask(mask, (4, 4))[0], expected)


def sample(boxes, classes, size=(50, 200), **more):
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return {"image": torch.zeros(3, *size, dtype=torch.uint8), "instances": instances, **more}


def test_targets_of_a_batch():
    batch = [
        sample([[20, 10, 60, 20]], [2]),
        sample([], []),
        sample([[0, 0, 10, 40], [5, 5, 10, 10]], [0, 1], size=(40, 10)),
    ]
    targets = prepare_targets(batch, 3, torch.device("cpu"))
    assert targets.counts == (1, 0, 2)
    assert targets.classes.tolist() == [2, 0, 1]
    expected = [[0.2, 0.3, 0.2, 0.2], [0.5, 0.5, 1.0, 1.0], [0.75, 0.1875, 0.5, 0.125]]
    torch.testing.assert_close(targets.boxes, torch.tensor(expected))


@pytest.mark.parametrize("bad_class", [3, -1])
def test_a_class_out_of_range_is_named_with_its_file(bad_class):
    batch = [sample([[0, 0, 9, 9]], [bad_class], file_name="cat.jpg")]
    with pytest.raises(ValueError, match=rf"cat\.jpg: class {bad_class} .* 3 classes"):
        prepare_targets(batch, 3, torch.device("cpu"))


def test_a_box_that_is_not_finite_is_named_with_its_file():
    batch = [sample([[0, 0, float("nan"), 9]], [0], file_name="cat.jpg")]
    with pytest.raises(ValueError, match=r"cat\.jpg: a box"):
        prepare_targets(batch, 3, torch.device("cpu"))


def test_training_without_labels_is_named():
    with pytest.raises(ValueError, match=r"image 0 of the batch: training needs 'instances'"):
        prepare_targets([{"image": torch.zeros(3, 4, 4)}], 3, torch.device("cpu"))


def test_all_targets_can_be_of_class_zero():
    targets = Targets(torch.tensor([4, 5, 6]), torch.arange(12.0).view(3, 4), (2, 0, 1))
    objects = targets.of_class_zero()
    assert objects.classes.tolist() == [0, 0, 0]
    assert torch.equal(objects.boxes, targets.boxes)
    assert objects.counts == targets.counts
