"""Box arithmetic: formats, overlap, and the border between images and the unit square.

Formats: xyxy is (x1, y1, x2, y2), cxcywh is (centre x, centre y, width, height). Overlaps take
xyxy, broadcast over leading dimensions, and run in at least fp32 whatever the autocast state, for
areas in half precision lose small boxes. Boxes come from predictions as well as from labels, so a
box without area is no error: its overlap with anything is zero and its gradients are finite.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Far below the area of one pixel in a normalised image (about 1e-7), far above the fp32 minimum.
_SMALLEST_AREA = 1e-12


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre format to corner format, in any unit."""
    _check_boxes(boxes)
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half, center + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) corner format to centre format, in any unit."""
    _check_boxes(boxes)
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def normalize_boxes(boxes_xyxy: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Absolute xyxy in an image of (height, width) -> cxcywh in [0, 1] of that image.

    The border on the way into a detector; `absolute_boxes` is the way back.
    """
    height, width = image_size
    scale = boxes_xyxy.new_tensor([width, height, width, height])
    return xyxy_to_cxcywh(boxes_xyxy) / scale


def absolute_boxes(boxes_cxcywh: Tensor, image_size: tuple[int, int]) -> Tensor:
    """cxcywh in [0, 1] of an image -> absolute xyxy in (height, width), clipped to the image."""
    height, width = image_size
    scale = boxes_cxcywh.new_tensor([width, height, width, height])
    boxes = cxcywh_to_xyxy(boxes_cxcywh) * scale
    return torch.minimum(boxes.clamp(min=0), scale)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """(..., 4) -> (...), zero for a box whose corners are swapped."""
    _check_boxes(boxes_xyxy)
    width_height = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0)
    return width_height[..., 0] * width_height[..., 1]


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of xyxy boxes, broadcast: (..., 4) and (..., 4) -> (...)."""
    return _iou_and_union(_at_least_fp32(boxes1), _at_least_fp32(boxes2))[0]


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """GIoU of xyxy boxes, broadcast: (..., 4) and (..., 4) -> (...), in [-1, 1].

    IoU minus the share of the enclosing box that the union leaves empty (Rezatofighi et al.,
    2019). Pairs of equal index: pass both as they are; all pairs: see `pairwise_giou`.
    """
    boxes1, boxes2 = _at_least_fp32(boxes1), _at_least_fp32(boxes2)
    iou, union = _iou_and_union(boxes1, boxes2)
    low = torch.minimum(boxes1[..., :2], boxes2[..., :2])
    high = torch.maximum(boxes1[..., 2:], boxes2[..., 2:])
    enclosing = box_area(torch.cat([low, high], dim=-1))
    return iou - (enclosing - union) / enclosing.clamp(min=_SMALLEST_AREA)


def pairwise_giou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """(N, 4) and (M, 4) xyxy -> (N, M)."""
    return generalized_box_iou(boxes1[..., :, None, :], boxes2[..., None, :, :])


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of x in [0, 1]; numerator and denominator are kept above `eps`, so it is finite."""
    x = x.clamp(min=0, max=1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def _iou_and_union(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    low = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    high = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    intersection = box_area(torch.cat([low, high], dim=-1))
    union = box_area(boxes1) + box_area(boxes2) - intersection
    return intersection / union.clamp(min=_SMALLEST_AREA), union


def _at_least_fp32(boxes: Tensor) -> Tensor:
    return boxes.to(torch.promote_types(boxes.dtype, torch.float32))


def _check_boxes(boxes: Tensor) -> None:
    if boxes.shape[-1:] != (4,):
        raise ValueError(f"boxes must be (..., 4), got {tuple(boxes.shape)}")
