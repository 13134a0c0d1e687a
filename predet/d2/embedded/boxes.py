"""Boxes of one image. Contract: `Boxes` and `BoxMode` of `detectron2.structures`.

Legend: N boxes. Frame: pixels of the image, x to the right, y down, the origin at its top left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum, unique
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Boxes:
    """N boxes (x1, y1, x2, y2) in absolute pixels, as one float32 tensor.

    Args:
        tensor: (N, 4); anything that `torch.as_tensor` reads. Without elements it has N = 0.

    Raises:
        ValueError: another shape.
    """

    def __init__(self, tensor: Tensor | np.ndarray | Sequence):
        if isinstance(tensor, Tensor):
            tensor = tensor.to(torch.float32)
        else:
            tensor = torch.as_tensor(tensor, dtype=torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(0, 4)
        if tensor.dim() != 2 or tensor.shape[1] != 4:
            raise ValueError(f"boxes must be (N, 4) xyxy, got {tuple(tensor.shape)}")
        self.tensor = tensor

    @classmethod
    def cat(cls, boxes: Sequence[Boxes]) -> Boxes:
        """All boxes in one; shares no memory with what goes in. No boxes give an empty one."""
        if not boxes:
            return cls(torch.empty(0, 4))
        return cls(torch.cat([one.tensor for one in boxes]))

    def clone(self) -> Boxes:
        return Boxes(self.tensor.clone())

    def to(self, device: torch.device | str) -> Boxes:
        return Boxes(self.tensor.to(device=device))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def area(self) -> Tensor:
        """(N,) square pixels; negative where exactly one side is."""
        x1, y1, x2, y2 = self.tensor.unbind(1)
        return (x2 - x1) * (y2 - y1)

    def get_centers(self) -> Tensor:
        """(N, 2) x and y."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """(N,) whether width and height are both greater than `threshold` pixels."""
        sides = self.tensor[:, 2:] - self.tensor[:, :2]
        return (sides > threshold).all(1)

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: float = 0) -> Tensor:
        """(N,) whether a box lies within (height, width), by up to `boundary_threshold` pixels.

        The right and bottom borders count as outside, the left and top ones as inside.
        """
        height, width = box_size
        x1, y1, x2, y2 = self.tensor.unbind(1)
        start = (x1 >= -boundary_threshold) & (y1 >= -boundary_threshold)
        return start & (x2 < width + boundary_threshold) & (y2 < height + boundary_threshold)

    def clip(self, box_size: tuple[int, int]) -> None:
        """Cut the boxes, in place, to an image of (height, width).

        Raises:
            ValueError: a coordinate is infinite or not a number.
        """
        if not torch.isfinite(self.tensor).all():
            raise ValueError("boxes to clip must be finite, got infinite or NaN coordinates")
        height, width = box_size
        x = self.tensor[:, 0::2].clamp(min=0, max=width)
        y = self.tensor[:, 1::2].clamp(min=0, max=height)
        self.tensor = torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), dim=1)

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply x and y, in place, also for those who hold the same tensor."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        """The boxes as tensors of shape (4,)."""
        yield from self.tensor

    def __getitem__(self, item: int | slice | Tensor) -> Boxes:
        """Boxes again, also for a single index; may share memory with these.

        Raises:
            ValueError: the index takes away or adds a dimension.
        """
        if isinstance(item, int):
            return Boxes(self.tensor[item].reshape(1, 4))
        rows = self.tensor[item]
        if rows.dim() != 2:
            raise ValueError(f"indexing boxes with {item} gives shape {tuple(rows.shape)}")
        return Boxes(rows)

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"


@unique
class BoxMode(IntEnum):
    """Ways to write a box down. The numbers are part of the data set format."""

    XYXY_ABS = 0
    XYWH_ABS = 1
    XYXY_REL = 2  # relative to the image's size; named only, not converted
    XYWH_REL = 3
    XYWHA_ABS = 4  # rotated: centre, size, degrees counter-clockwise; named only

    @staticmethod
    def convert(box: Any, from_mode: BoxMode, to_mode: BoxMode) -> Any:
        """Rewrite boxes; the input is not changed, and is returned itself if the modes are equal.

        Args:
            box: four numbers in a list or tuple, or an (N, 4) array or tensor; integer ones too.

        Returns:
            The same type, and for arrays and tensors the same dtype.

        Raises:
            ValueError: another shape, or a conversion other than between XYXY_ABS and XYWH_ABS.
        """
        if from_mode == to_mode:
            return box
        known = (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        if from_mode not in known or to_mode not in known:
            names = f"{BoxMode(from_mode).name} to {BoxMode(to_mode).name}"
            raise ValueError(f"boxes can be converted between XYXY_ABS and XYWH_ABS, not {names}")
        sign = 1 if from_mode == BoxMode.XYWH_ABS else -1
        if isinstance(box, (list, tuple)):
            if len(box) != 4:
                raise ValueError(f"a box must have 4 numbers, got {len(box)}: {box}")
            x, y, right, bottom = box
            return type(box)((x, y, right + sign * x, bottom + sign * y))
        if box.ndim != 2 or box.shape[1] != 4:
            raise ValueError(f"boxes must be (N, 4), got {tuple(box.shape)}")
        box = box.clone() if isinstance(box, Tensor) else np.array(box)
        box[:, 2:] += sign * box[:, :2]
        return box
