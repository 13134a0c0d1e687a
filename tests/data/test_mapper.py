import pickle

import numpy as np
import pytest
import torch

from predet.d2 import Boxes, Instances
from predet.data.augmentation import Compose, DETRAugmentation, ResizeShortSide
from predet.data.formats import load_dataset
from predet.data.images import BadSampleError, read_image
from predet.data.mapper import DetectionMapper, to_chw_tensor

NOTHING = Compose(steps=[])
RNG = np.random.default_rng(0)


@pytest.fixture
def record(coco_content, write_coco):
    """24 x 32 pixels, two boxes, the first a crowd."""
    coco_content["annotations"][0]["iscrowd"] = 1
    return load_dataset(write_coco(coco_content))[1]


def test_batch_dict_is_that_of_detectron2(record):
    item = DetectionMapper(augmentation=NOTHING, training=True)(record, RNG)
    assert set(item) == {
        "image",
        "instances",
        "height",
        "width",
        "image_id",
        "file_name",
        "key",
    }
    assert (item["height"], item["width"], item["image_id"]) == (24, 32, 20)
    assert (item["file_name"], item["key"]) == (record.path, "sub/b.png")
    assert (item["image"].dtype, item["image"].shape) == (torch.uint8, (3, 24, 32))
    assert item["image"].is_contiguous()
    expected = read_image(record.path)
    np.testing.assert_array_equal(item["image"].numpy(), expected.transpose(2, 0, 1))
    assert isinstance(item["instances"], Instances)
    assert isinstance(item["instances"].gt_boxes, Boxes)


def test_crowds_are_left_out_in_training_only(record):
    training = DetectionMapper(augmentation=NOTHING, training=True)(record, RNG)["instances"]
    assert training.gt_boxes.tensor.tolist() == [[4.5, 3.25, 10.5, 8.25]]
    assert training.gt_classes.tolist() == [0]
    test = DetectionMapper(augmentation=NOTHING, training=False)(record, RNG)["instances"]
    assert test.gt_classes.tolist() == [1, 0]


def test_instances_are_in_the_frame_of_the_resized_image(record):
    resize = ResizeShortSide(short_sides=[48])
    item = DetectionMapper(augmentation=resize, training=True)(record, RNG)
    assert tuple(item["image"].shape) == (3, 48, 64)
    assert item["instances"].image_size == (48, 64)
    assert item["instances"].gt_boxes.tensor.tolist() == [[9, 6.5, 21, 16.5]]
    assert (item["height"], item["width"]) == (24, 32)  # of the file


def test_image_without_boxes_has_empty_targets_of_the_right_types(coco_content, write_coco):
    record = load_dataset(write_coco(coco_content))[2]
    instances = DetectionMapper(augmentation=NOTHING, training=True)(record, RNG)["instances"]
    assert (instances.gt_boxes.tensor.shape, instances.gt_boxes.tensor.dtype) == (
        (0, 4),
        torch.float32,
    )
    assert (instances.gt_classes.shape, instances.gt_classes.dtype) == ((0,), torch.int64)


def test_file_of_another_size_than_annotated_is_a_bad_sample(record):
    mapper = DetectionMapper(augmentation=NOTHING, training=True)
    with pytest.raises(BadSampleError, match=r"b\.png: annotated as 32x25 pixels, but .*32x24$"):
        mapper(record._replace(height=25), RNG)
    with pytest.raises(BadSampleError, match="has 32x24: annotated before it was turned upright"):
        mapper(record._replace(height=32, width=24), RNG)
    mapper(record._replace(height=0, width=0), RNG)  # unknown


def test_mapper_is_a_function_of_record_and_generator(record):
    augmentation = DETRAugmentation(
        short_sides=(20, 24, 28), max_size=64, crop_short_sides=(24,), crop_size=(12, 20)
    )
    mapper = pickle.loads(pickle.dumps(DetectionMapper(augmentation=augmentation, training=True)))
    first, second, third = (mapper(record, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first["image"], second["image"])
    assert torch.equal(first["instances"].gt_boxes.tensor, second["instances"].gt_boxes.tensor)
    assert not torch.equal(first["image"], third["image"])


def test_chw_copy_takes_views_and_shares_no_memory():
    image = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    window = image[2:7, 3:11]
    tensor = to_chw_tensor(window)
    np.testing.assert_array_equal(tensor.numpy(), window.transpose(2, 0, 1))
    image[:] = 0
    assert tensor.numpy().any()
