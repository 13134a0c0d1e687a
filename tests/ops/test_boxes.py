"""Box arithmetic against torchvision and hand-computed values."""

from __future__ import annotations

import pytest
import torch
import torchvision

from predet.ops.boxes import (
    absolute_boxes,
    box_area,
    box_iou,
    cxcywh_to_xyxy,
    generalized_box_iou,
    inverse_sigmoid,
    normalize_boxes,
    pairwise_giou,
    xyxy_to_cxcywh,
)


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator)
    return torch.cat([low, low + 0.01 + torch.rand(count, 2, generator=generator)], dim=1)


def test_formats_by_hand_and_round_trip():
    corners = torch.tensor([[10.0, 20.0, 30.0, 80.0]])
    centers = torch.tensor([[20.0, 50.0, 20.0, 60.0]])
    assert torch.equal(xyxy_to_cxcywh(corners), centers)
    assert torch.equal(cxcywh_to_xyxy(centers), corners)
    boxes = random_boxes(50, 0)
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)


def test_border_of_an_image_that_is_not_square():
    # height 50, width 200: swapped sides would be seen.
    boxes = torch.tensor([[20.0, 10.0, 60.0, 20.0]])
    unit = normalize_boxes(boxes, (50, 200))
    torch.testing.assert_close(unit, torch.tensor([[0.2, 0.3, 0.2, 0.2]]))
    torch.testing.assert_close(absolute_boxes(unit, (50, 200)), boxes)


def test_absolute_boxes_are_clipped_to_the_image():
    boxes = torch.tensor([[0.0, 0.5, 0.5, 0.2], [0.9, 1.0, 0.5, 0.5]])
    expected = torch.tensor([[0.0, 20.0, 50.0, 30.0], [130.0, 37.5, 200.0, 50.0]])
    torch.testing.assert_close(absolute_boxes(boxes, (50, 200)), expected)


def test_overlap_equals_torchvision():
    a, b = random_boxes(40, 1), random_boxes(30, 2)
    torch.testing.assert_close(box_iou(a[:, None], b), torchvision.ops.box_iou(a, b))
    torch.testing.assert_close(pairwise_giou(a, b), torchvision.ops.generalized_box_iou(a, b))
    torch.testing.assert_close(box_area(a), torchvision.ops.box_area(a))


def test_matched_pairs_are_the_diagonal_of_all_pairs():
    a, b = random_boxes(30, 3), random_boxes(30, 4)
    torch.testing.assert_close(generalized_box_iou(a, b), pairwise_giou(a, b).diagonal())
    torch.testing.assert_close(box_iou(a, b), torchvision.ops.box_iou(a, b).diagonal())


@pytest.mark.parametrize(
    ("first", "second", "iou", "giou"),
    [
        ([0, 0, 2, 2], [0, 0, 2, 2], 1.0, 1.0),
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7, 1 / 7 - 2 / 9),
        ([0, 0, 1, 1], [2, 0, 3, 1], 0.0, -1 / 3),  # apart: the gap is a third of the hull
        ([0, 0, 0, 0], [0, 0, 1, 1], 0.0, 0.0),  # a point in a corner
        ([5, 5, 5, 5], [5, 5, 5, 5], 0.0, 0.0),  # nothing and nothing
        ([2, 2, 0, 0], [0, 0, 2, 2], 0.0, 0.0),  # swapped corners have no area
    ],
)
def test_overlap_by_hand(first, second, iou, giou):
    a, b = torch.tensor([first], dtype=torch.float), torch.tensor([second], dtype=torch.float)
    torch.testing.assert_close(box_iou(a, b), torch.tensor([iou]))
    torch.testing.assert_close(generalized_box_iou(a, b), torch.tensor([giou]))


def test_degenerate_boxes_have_finite_gradients():
    boxes = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.0, 0.3]], requires_grad=True)
    target = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.2, 0.5, 0.2, 0.2]])
    generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target)).sum().backward()
    assert boxes.grad.isfinite().all()


def test_overlap_of_half_precision_is_computed_in_fp32():
    # The area of this box is below the smallest fp16 number.
    box = torch.tensor([[0.5, 0.5, 0.5001, 0.5001]]).half()
    assert generalized_box_iou(box, box).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        boxes = random_boxes(10, 5)
        torch.testing.assert_close(box_iou(boxes, boxes), torch.ones(10))


def test_inverse_sigmoid():
    x = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(inverse_sigmoid(x), torch.logit(x))
    ends = inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    torch.testing.assert_close(ends, torch.tensor([-11.5129, -11.5129, 11.5129, 11.5129]))


def test_a_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"\(\.\.\., 4\), got \(3, 5\)"):
        cxcywh_to_xyxy(torch.zeros(3, 5))
