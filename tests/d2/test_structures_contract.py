"""Boxes, box modes, instances, image batches, masks."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.testing import assert_close

REFUSED = (ValueError, AssertionError)  # the embedded side, Detectron2


@pytest.fixture
def boxes(d2):
    return d2.Boxes(
        torch.tensor([[1.0, 2.0, 4.0, 8.0], [0.0, 0.0, 10.0, 1.0], [5.0, 5.0, 5.0, 9.0]])
    )


# Boxes


def test_boxes_are_float32_n_by_4(d2) -> None:
    assert d2.Boxes([[1, 2, 3, 4]]).tensor.dtype == torch.float32
    assert d2.Boxes(torch.tensor([[1, 2, 3, 4]], dtype=torch.float64)).tensor.dtype == torch.float32
    assert d2.Boxes(np.ones((3, 4))).tensor.shape == (3, 4)
    for empty in (torch.empty(0), torch.empty(0, 4), [], np.zeros((0, 4))):
        assert d2.Boxes(empty).tensor.shape == (0, 4)


@pytest.mark.parametrize("shape", [(4,), (2, 5), (1, 2, 4)])
def test_boxes_of_another_shape_are_refused(d2, shape) -> None:
    with pytest.raises(REFUSED, match=str(shape[-1])):
        d2.Boxes(torch.zeros(shape))


def test_boxes_measures(boxes) -> None:
    assert boxes.area().tolist() == [18.0, 10.0, 0.0]
    assert boxes.get_centers().tolist() == [[2.5, 5.0], [5.0, 0.5], [5.0, 7.0]]
    assert boxes.nonempty().tolist() == [True, True, False]
    assert boxes.nonempty(threshold=1.0).tolist() == [True, False, False]
    assert boxes.nonempty(threshold=3.0).tolist() == [False, False, False]
    assert len(boxes) == 3
    assert boxes.device == torch.device("cpu")
    assert [box.shape for box in boxes] == [(4,)] * 3
    assert "10." in repr(boxes)


def test_boxes_inside_box_excludes_the_right_and_bottom_border(boxes) -> None:
    assert boxes.inside_box((9, 11)).tolist() == [True, True, False]
    assert boxes.inside_box((10, 10)).tolist() == [True, False, True]
    assert boxes.inside_box((9, 10), boundary_threshold=1).tolist() == [True, True, True]


def test_boxes_clip_in_place_to_height_and_width(d2) -> None:
    boxes = d2.Boxes([[-3.0, -4.0, 30.0, 40.0], [25.0, 2.0, 26.0, 3.0]])
    assert boxes.clip((10, 20)) is None
    assert boxes.tensor.tolist() == [[0.0, 0.0, 20.0, 10.0], [20.0, 2.0, 20.0, 3.0]]
    empty = d2.Boxes([])
    empty.clip((10, 20))
    assert empty.tensor.shape == (0, 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_boxes_that_are_not_finite_cannot_be_clipped(d2, bad) -> None:
    with pytest.raises(REFUSED, match="infinite or NaN"):
        d2.Boxes([[0.0, bad, 1.0, 1.0]]).clip((10, 10))


def test_boxes_scale_in_place(boxes) -> None:
    boxes.scale(2.0, 0.5)
    assert boxes.tensor[0].tolist() == [2.0, 1.0, 8.0, 4.0]


def test_boxes_indexing_gives_boxes(d2, boxes) -> None:
    assert boxes[0].tensor.tolist() == [[1.0, 2.0, 4.0, 8.0]]
    assert boxes[-1].tensor.shape == (1, 4)
    assert len(boxes[1:]) == 2
    assert len(boxes[boxes.nonempty()]) == 2
    assert boxes[torch.tensor([2, 0])].tensor[1].tolist() == [1.0, 2.0, 4.0, 8.0]
    assert len(boxes[torch.zeros(3, dtype=torch.bool)]) == 0
    assert isinstance(boxes[0], d2.Boxes)
    with pytest.raises(REFUSED):
        boxes[torch.tensor(1)]
    with pytest.raises(IndexError):
        boxes[3]


def test_boxes_cat_clone_and_to_are_copies(d2, boxes) -> None:
    joined = d2.Boxes.cat([boxes, boxes[:1], d2.Boxes([])])
    assert len(joined) == 4
    cloned = boxes.clone()
    joined.scale(0.0, 0.0)
    cloned.scale(0.0, 0.0)
    assert boxes.tensor[0].tolist() == [1.0, 2.0, 4.0, 8.0]
    assert len(d2.Boxes.cat([])) == 0
    assert len(boxes.to("cpu")) == 3
    assert boxes.to(torch.device("meta")).device.type == "meta"


def test_boxes_keep_the_gradient(d2) -> None:
    corners = torch.tensor([[1.0, 2.0, 4.0, 8.0]], requires_grad=True)
    d2.Boxes(corners).area().sum().backward()
    assert corners.grad.tolist() == [[-6.0, -3.0, 6.0, 3.0]]


# Box modes


def test_box_mode_numbers_are_those_of_the_format(d2) -> None:
    names = ["XYXY_ABS", "XYWH_ABS", "XYXY_REL", "XYWH_REL", "XYWHA_ABS"]
    assert [(mode.name, int(mode)) for mode in d2.BoxMode] == list(
        zip(names, range(5), strict=True)
    )


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_box_mode_converts_and_keeps_type_and_input(d2, kind) -> None:
    xyxy, xywh = d2.BoxMode.XYXY_ABS, d2.BoxMode.XYWH_ABS
    single = kind in (list, tuple)
    box = kind([1.0, 2.0, 4.0, 8.0]) if single else kind([[1.0, 2.0, 4.0, 8.0]])
    before = copy.deepcopy(box)
    converted = d2.BoxMode.convert(box, xyxy, xywh)
    assert type(converted) is type(box)
    assert_close(torch.as_tensor(converted).flatten().tolist(), [1.0, 2.0, 3.0, 6.0])
    back = d2.BoxMode.convert(converted, xywh, xyxy)
    assert_close(torch.as_tensor(back).flatten().tolist(), [1.0, 2.0, 4.0, 8.0])
    assert torch.as_tensor(box).tolist() == torch.as_tensor(before).tolist()
    assert d2.BoxMode.convert(box, xyxy, xyxy) is box


def test_box_mode_keeps_integers_and_dtypes(d2) -> None:
    xyxy, xywh = d2.BoxMode.XYXY_ABS, d2.BoxMode.XYWH_ABS
    converted = d2.BoxMode.convert([1, 2, 3, 6], xywh, xyxy)
    assert converted == [1, 2, 4, 8]
    assert all(isinstance(value, int) for value in converted)
    doubles = d2.BoxMode.convert(np.array([[0.1, 0.2, 0.3, 0.4]]), xywh, xyxy)
    assert doubles.dtype == np.float64
    assert doubles[0, 2] == 0.1 + 0.3
    assert d2.BoxMode.convert(torch.zeros(0, 4), xywh, xyxy).shape == (0, 4)


def test_box_mode_refuses_what_it_does_not_know(d2) -> None:
    refused = (*REFUSED, NotImplementedError)
    with pytest.raises(refused):
        d2.BoxMode.convert([1, 2, 3], d2.BoxMode.XYWH_ABS, d2.BoxMode.XYXY_ABS)
    with pytest.raises(refused):
        d2.BoxMode.convert([1, 2, 3, 4], d2.BoxMode.XYWH_REL, d2.BoxMode.XYXY_ABS)
    with pytest.raises(refused):
        d2.BoxMode.convert([1, 2, 3, 4], d2.BoxMode.XYXY_ABS, d2.BoxMode.XYXY_REL)


# Instances


@pytest.fixture
def instances(d2, boxes):
    return d2.Instances(
        (10, 20), gt_boxes=boxes, scores=torch.tensor([0.1, 0.9, 0.5]), names=["a", "b", "c"]
    )


def test_instances_fields(d2, instances) -> None:
    assert instances.image_size == (10, 20)
    assert len(instances) == 3
    assert instances.has("scores")
    assert not instances.has("gt_classes")
    instances.gt_classes = torch.tensor([2, 0, 1])
    instances.set("extra", [1, 2, 3])
    assert instances.get("gt_classes") is instances.gt_classes
    assert list(instances.get_fields()) == ["gt_boxes", "scores", "names", "gt_classes", "extra"]
    instances.remove("extra")
    assert not instances.has("extra")
    with pytest.raises(AttributeError, match="extra"):
        _ = instances.extra
    with pytest.raises(KeyError):
        instances.get("extra")
    assert "num_instances=3" in repr(instances)


def test_instances_fields_share_one_length(d2, instances) -> None:
    with pytest.raises(REFUSED, match=r"\b4\b"):
        instances.gt_classes = torch.zeros(4)
    with pytest.raises(REFUSED, match=r"\b1\b"):
        d2.Instances((1, 1), a=[1, 2], b=[1])
    assert not instances.has("gt_classes")


def test_instances_indexing_applies_to_all_fields(d2, instances) -> None:
    kept = instances[1:]
    assert kept.names == ["b", "c"]
    assert kept.image_size == (10, 20)
    assert instances[-2].names == ["b"]
    assert instances[2].gt_boxes.tensor.tolist() == [[5.0, 5.0, 5.0, 9.0]]
    instances.remove("names")
    assert_close(instances[instances.scores > 0.3].scores, torch.tensor([0.9, 0.5]))
    assert len(instances[torch.tensor([], dtype=torch.long)]) == 0
    for outside in (3, -4):
        with pytest.raises(IndexError):
            instances[outside]


def test_instances_cat(d2, instances) -> None:
    joined = d2.Instances.cat([instances, instances[:1]])
    assert joined.names == ["a", "b", "c", "a"]
    assert joined.gt_boxes.tensor.shape == (4, 4)
    assert_close(joined.scores, torch.tensor([0.1, 0.9, 0.5, 0.1]))
    assert joined.image_size == (10, 20)
    assert d2.Instances.cat([instances]) is instances
    with pytest.raises(REFUSED):
        d2.Instances.cat([instances, d2.Instances((1, 1), gt_boxes=instances.gt_boxes)])
    with pytest.raises(REFUSED):
        d2.Instances.cat([])
    odd = d2.Instances((1, 1), a=(1, 2))
    with pytest.raises(ValueError, match="tuple"):
        d2.Instances.cat([odd, odd])


def test_instances_to_moves_what_can_be_moved(instances) -> None:
    moved = instances.to("meta")
    assert moved.gt_boxes.device.type == moved.scores.device.type == "meta"
    assert moved.names == ["a", "b", "c"]
    assert instances.scores.device.type == "cpu"


def test_instances_without_fields_have_no_length(d2) -> None:
    with pytest.raises(NotImplementedError):
        len(d2.Instances((1, 1)))
    with pytest.raises(NotImplementedError):
        iter(d2.Instances((1, 1), a=[1]))
    assert len(d2.Instances((1, 1), gt_boxes=d2.Boxes([]))) == 0


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_instances_can_be_copied_and_sent(instances, copier) -> None:
    again = copier(instances)
    again.gt_boxes.scale(0.0, 0.0)
    assert again.image_size == (10, 20)
    assert again.names == ["a", "b", "c"]
    assert instances.gt_boxes.tensor[0].tolist() == [1.0, 2.0, 4.0, 8.0]


# Image batches


def test_image_list_pads_right_and_below(d2) -> None:
    images = [torch.ones(3, 4, 7), 2 * torch.ones(3, 6, 5)]
    batch = d2.ImageList.from_tensors(images, pad_value=-1.0)
    assert batch.tensor.shape == (2, 3, 6, 7)
    assert [tuple(size) for size in batch.image_sizes] == [(4, 7), (6, 5)]
    assert len(batch) == 2
    assert batch.tensor[0, :, :4, :].eq(1).all()
    assert batch.tensor[0, :, 4:, :].eq(-1).all()
    assert batch.tensor[1, :, :, 5:].eq(-1).all()
    for index, image in enumerate(images):
        assert_close(batch[index], image)
    assert batch.to(torch.float64).tensor.dtype == torch.float64
    assert batch.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("sizes", "options", "expected"),
    [
        ([(33, 64)], {"size_divisibility": 32}, (64, 64)),
        ([(32, 64), (10, 65)], {"size_divisibility": 32}, (32, 96)),
        ([(5, 7)], {"size_divisibility": 1}, (5, 7)),
        ([(5, 7)], {"padding_constraints": {"size_divisibility": 4}}, (8, 8)),
        ([(5, 7), (3, 3)], {"padding_constraints": {"square_size": 10}}, (10, 10)),
        ([(5, 7)], {"padding_constraints": {"square_size": 9, "size_divisibility": 8}}, (16, 16)),
    ],
)
def test_image_list_sizes(d2, sizes, options, expected) -> None:
    batch = d2.ImageList.from_tensors([torch.ones(3, *size) for size in sizes], **options)
    assert batch.tensor.shape[-2:] == expected
    assert [tuple(size) for size in batch.image_sizes] == sizes
    assert batch.tensor.sum() == 3 * sum(height * width for height, width in sizes)


def test_image_list_keeps_dtype_and_takes_masks(d2) -> None:
    batch = d2.ImageList.from_tensors([torch.ones(2, 3, dtype=torch.uint8)] * 2, 4)
    assert batch.tensor.dtype == torch.uint8
    assert batch.tensor.shape == (2, 4, 4)


def test_image_list_refuses_nothing_and_mixtures(d2) -> None:
    with pytest.raises(REFUSED):
        d2.ImageList.from_tensors([])
    with pytest.raises(REFUSED):
        d2.ImageList.from_tensors([torch.ones(3, 4, 4), torch.ones(1, 4, 4)])


# Masks


def test_bit_masks(d2) -> None:
    masks = torch.zeros(3, 5, 6)
    masks[0, 1:3, 2:6] = 1
    masks[2, 4, 0] = 7
    masks = d2.BitMasks(masks)
    assert masks.tensor.dtype == torch.bool
    assert tuple(masks.image_size) == (5, 6)
    assert masks.nonempty().tolist() == [True, False, True]
    expected = [[2.0, 1.0, 6.0, 3.0], [0.0] * 4, [0.0, 4.0, 1.0, 5.0]]
    assert masks.get_bounding_boxes().tensor.tolist() == expected
    assert masks[0].tensor.shape == (1, 5, 6)
    assert len(masks[masks.nonempty()]) == 2
    assert len(masks[1:]) == 2
    assert len(d2.BitMasks.cat([masks, masks[:1]])) == 4
    assert [mask.shape for mask in masks] == [(5, 6)] * 3
    assert masks.to("cpu").device == torch.device("cpu")
    assert "num_instances=3" in repr(masks)


def test_bit_masks_edges(d2) -> None:
    none = d2.BitMasks(np.zeros((0, 5, 6), dtype=bool))
    assert len(none) == 0
    assert none.get_bounding_boxes().tensor.shape == (0, 4)
    with pytest.raises(REFUSED):
        d2.BitMasks(torch.zeros(5, 6))
    with pytest.raises(REFUSED):
        d2.BitMasks(torch.zeros(2, 5, 6))[torch.tensor(0)]
