"""Instances, image batches and masks. Contract: `detectron2.structures`.

Legend: N instances, B images, H and W height and width in pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from predet.d2.embedded.boxes import Boxes, BoxMode

__all__ = ["BitMasks", "BoxMode", "Boxes", "ImageList", "Instances"]


class Instances:
    """The objects of one image: fields of equal length under names of the caller's choice.

    `instances.gt_boxes = Boxes(...)` sets a field, `instances.gt_boxes` reads it. Names that begin
    with an underscore are ordinary attributes.

    Args:
        image_size: (height, width) of the frame in which boxes and masks are given.
        **fields: first fields, all of one length.

    Raises:
        ValueError: a field of another length than those before it.
    """

    _image_size: tuple[int, int]
    _fields: dict[str, Any]

    def __init__(self, image_size: tuple[int, int], **fields: Any):
        self._image_size = image_size
        self._fields = {}
        for name, value in fields.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        return self._image_size

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            self.set(name, value)

    def __getattr__(self, name: str) -> Any:
        # `_fields` itself is asked for here while a copy is being made.
        if name == "_fields" or name not in self._fields:
            raise AttributeError(f"these instances have no field {name!r}")
        return self._fields[name]

    def set(self, name: str, value: Any) -> None:
        if self._fields and len(value) != len(self):
            raise ValueError(
                f"field {name!r} must have {len(self)} entries, like "
                f"{next(iter(self._fields))!r}, got {len(value)}"
            )
        self._fields[name] = value

    def get(self, name: str) -> Any:
        return self._fields[name]

    def has(self, name: str) -> bool:
        return name in self._fields

    def remove(self, name: str) -> None:
        del self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """The fields themselves, not a copy."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> Instances:
        """New instances; `to` is called on the fields that have it."""
        moved = Instances(self._image_size)
        for name, value in self._fields.items():
            moved.set(name, value.to(*args, **kwargs) if hasattr(value, "to") else value)
        return moved

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("instances without any field have no length")

    def __getitem__(self, item: int | slice | Tensor) -> Instances:
        """All fields indexed alike; an int gives instances of length one."""
        if isinstance(item, int):
            if not -len(self) <= item < len(self):
                raise IndexError(f"index {item} is out of range for {len(self)} instances")
            item = slice(item, None, len(self))  # one entry, for negative ones too
        chosen = Instances(self._image_size)
        for name, value in self._fields.items():
            chosen.set(name, value[item])
        return chosen

    def __iter__(self) -> Iterator:
        raise NotImplementedError("instances cannot be iterated over; index them or their fields")

    @staticmethod
    def cat(instance_lists: Sequence[Instances]) -> Instances:
        """All instances in one; a single one is returned itself.

        Raises:
            ValueError: nothing to join, different image sizes, or a field that cannot be joined.
        """
        if not instance_lists:
            raise ValueError("there must be at least one Instances to join")
        first = instance_lists[0]
        if len(instance_lists) == 1:
            return first
        sizes = {tuple(one.image_size) for one in instance_lists}
        if len(sizes) > 1:
            raise ValueError(f"instances to join must share one image size, got {sorted(sizes)}")
        joined = Instances(first.image_size)
        for name in first.get_fields():
            joined.set(name, _join(name, [one.get(name) for one in instance_lists]))
        return joined

    def __repr__(self) -> str:
        height, width = self._image_size
        count = len(self) if self._fields else 0
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        return (
            f"Instances(num_instances={count}, image_height={height}, image_width={width}, "
            f"fields=[{fields}])"
        )


def _join(name: str, values: list) -> Any:
    kind = type(values[0])
    if issubclass(kind, Tensor):
        return torch.cat(values)
    if issubclass(kind, list):
        return list(itertools.chain.from_iterable(values))
    if hasattr(kind, "cat"):
        return kind.cat(values)
    raise ValueError(f"field {name!r}: objects of type {kind.__name__} cannot be joined")


class ImageList:
    """Images of several sizes in one tensor, padded to the right and at the bottom.

    Args:
        tensor: (B, ..., H, W).
        image_sizes: (height, width) of each image without padding.
    """

    def __init__(self, tensor: Tensor, image_sizes: list[tuple[int, int]]):
        self.tensor = tensor
        self.image_sizes = image_sizes

    @staticmethod
    def from_tensors(
        tensors: Sequence[Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: Mapping[str, int] | None = None,
    ) -> ImageList:
        """Pad images to a common size.

        Args:
            tensors: each (..., Hi, Wi), all alike but for Hi and Wi.
            size_divisibility: the common height and width are multiples of it, if it is over 1.
            pad_value: what the padding holds.
            padding_constraints: "square_size" > 0 makes the result at least a square of that side;
                "size_divisibility" stands in for the argument.

        Raises:
            ValueError: no images, different leading shapes, or an image larger than the square.
        """
        constraints = padding_constraints or {}
        size_divisibility = constraints.get("size_divisibility", size_divisibility)
        if not tensors:
            raise ValueError("there must be at least one image to batch")
        leading = {tuple(image.shape[:-2]) for image in tensors}
        if len(leading) > 1:
            raise ValueError(f"images must agree in all but height and width, got {leading}")
        sizes = [(image.shape[-2], image.shape[-1]) for image in tensors]
        height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
        square = constraints.get("square_size", 0)
        if square > 0:
            if max(height, width) > square:
                raise ValueError(f"images must fit a square of {square}, got {(height, width)}")
            height = width = square
        if size_divisibility > 1:
            height = -(-height // size_divisibility) * size_divisibility
            width = -(-width // size_divisibility) * size_divisibility
        if len(tensors) == 1:
            padding = (0, width - sizes[0][1], 0, height - sizes[0][0])
            batch = functional.pad(tensors[0], padding, value=pad_value).unsqueeze(0)
            return ImageList(batch.contiguous(), sizes)
        batch = tensors[0].new_full((len(tensors), *next(iter(leading)), height, width), pad_value)
        for padded, image in zip(batch, tensors, strict=True):
            padded[..., : image.shape[-2], : image.shape[-1]] = image
        return ImageList(batch, sizes)

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, index: int) -> Tensor:
        """One image without its padding: (..., Hi, Wi)."""
        height, width = self.image_sizes[index]
        return self.tensor[index, ..., :height, :width]

    def to(self, *args: Any, **kwargs: Any) -> ImageList:
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        return self.tensor.device


class BitMasks:
    """One mask per instance of an image, as a bool tensor.

    Args:
        tensor: (N, H, W); other dtypes are true where they are not zero.

    Raises:
        ValueError: another number of dimensions.
    """

    def __init__(self, tensor: Tensor | np.ndarray):
        tensor = torch.as_tensor(tensor).to(torch.bool)
        if tensor.dim() != 3:
            raise ValueError(f"masks must be (N, H, W), got {tuple(tensor.shape)}")
        self.tensor = tensor
        self.image_size = tensor.shape[1:]

    @staticmethod
    def cat(bitmasks: Sequence[BitMasks]) -> BitMasks:
        if not bitmasks:
            raise ValueError("there must be at least one BitMasks to join")
        return BitMasks(torch.cat([one.tensor for one in bitmasks]))

    def to(self, *args: Any, **kwargs: Any) -> BitMasks:
        return BitMasks(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def nonempty(self) -> Tensor:
        """(N,) whether any pixel is set."""
        return self.tensor.flatten(1).any(1)

    def get_bounding_boxes(self) -> Boxes:
        """Tight boxes, on the CPU, zero for empty masks; a box ends behind its last pixel."""
        masks = self.tensor.cpu()
        boxes = torch.zeros(len(masks), 4)
        for start, along in ((0, 1), (1, 2)):  # x: any over rows; y: any over columns
            touched = masks.any(along)  # (N, W) or (N, H)
            size = touched.shape[1]
            index = torch.arange(size)
            first = torch.where(touched, index, size).amin(1) if size else torch.zeros(len(masks))
            last = torch.where(touched, index + 1, 0).amax(1) if size else torch.zeros(len(masks))
            boxes[:, start], boxes[:, start + 2] = first, last
        boxes[~masks.flatten(1).any(1)] = 0
        return Boxes(boxes)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        """The masks as tensors of shape (H, W)."""
        yield from self.tensor

    def __getitem__(self, item: int | slice | Tensor) -> BitMasks:
        """Masks again, also for a single index; may share memory with these.

        Raises:
            ValueError: the index takes away or adds a dimension.
        """
        masks = self.tensor[item]
        return BitMasks(masks.unsqueeze(0) if isinstance(item, int) else masks)

    def __repr__(self) -> str:
        return f"BitMasks(num_instances={len(self)})"
