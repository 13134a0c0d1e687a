"""Images and their annotations, held once in flat arrays.

A list of dicts costs kilobytes an image, and each forked worker that touches it makes a copy of it
(the reference counts lie between the data). Flat NumPy arrays are pickled in one piece, are not
copied by a fork, and can be moved to shared memory for workers that are spawned.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from predet.d2 import BoxMode, DatasetCatalog, MetadataCatalog

# dtype and trailing shape of every array; the leading length is that of images or of annotations.
_IMAGE_ARRAYS = {"image_ids": np.int64, "heights": np.int32, "widths": np.int32}
_ANNOTATION_ARRAYS = {"classes": np.int32, "iscrowd": np.bool_, "areas": np.float32}
_ARRAYS = ("key_bytes", "key_offsets", "offsets", "boxes", *_IMAGE_ARRAYS, *_ANNOTATION_ARRAYS)


class Sources(NamedTuple):
    """What a mixture of data sets consists of; the first part of each key names its source."""

    roots: dict[str, str]  # the folder of each source's images
    weights: dict[str, float] | None  # of images in training; None: all images are equal


class Record(NamedTuple):
    """One image and its annotations. The arrays are the caller's own copies."""

    key: str  # path relative to the root of the data set, with "/" between the parts
    path: str
    image_id: int
    height: int  # pixels, of the image as it is shown (EXIF applied); 0 = unknown
    width: int
    boxes: np.ndarray  # (N, 4) float32 absolute xyxy
    classes: np.ndarray  # (N,) int64 contiguous class
    iscrowd: np.ndarray  # (N,) bool


class DetectionDataset:
    """A sequence of `Record`.

    Image i has the annotations `offsets[i]:offsets[i + 1]` of `boxes` (M, 4) float32 absolute xyxy,
    `classes` (M,), `iscrowd` (M,) and `areas` (M,) float32 (square pixels as annotated, which for
    COCO is the mask's area; the box's area where nothing was annotated). All arrays are read-only.
    """

    def __init__(
        self,
        *,
        name: str,
        root: str,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        keys: Sequence[str],
        image_ids: Any,
        heights: Any,
        widths: Any,
        offsets: Any,
        boxes: Any,
        classes: Any,
        iscrowd: Any = None,
        areas: Any = None,
        sources: Sources | None = None,
    ):
        """Take the arrays described above.

        Args:
            name: What logs and messages call this data set.
            root: The folder that `keys` are relative to.
            category_ids: Original (for example COCO) category id of each class.
            keys: Path of each image relative to `root`; unique.
            image_ids: (n,) unique and not negative.
            heights, widths: (n,) pixels; 0 where unknown.
            iscrowd: None for "none is a crowd".
            areas: None for the boxes' own areas.
            sources: Of a mixture; see `predet.data.mixing`.

        Raises:
            ValueError: An array does not fit the others, or a key or an id occurs twice.
        """
        self.name, self.root, self.sources = name, os.fspath(root), sources
        self.class_names = tuple(class_names)
        self.category_ids = tuple(int(category) for category in category_ids)
        encoded = [key.encode("utf-8", "surrogateescape") for key in keys]
        self.key_bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self.key_offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self.image_ids = np.asarray(image_ids, np.int64)
        self.heights, self.widths = np.asarray(heights, np.int32), np.asarray(widths, np.int32)
        self.offsets = np.asarray(offsets, np.int64)
        self.boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        self.classes = np.asarray(classes, np.int32)
        if iscrowd is None:
            iscrowd = np.zeros(len(self.boxes), np.bool_)
        self.iscrowd = np.asarray(iscrowd, np.bool_)
        if areas is None:
            areas = (self.boxes[:, 2:] - self.boxes[:, :2]).prod(axis=1)
        self.areas = np.asarray(areas, np.float32)
        self._shared: dict[str, torch.Tensor] = {}
        self._check(keys)
        for array in _ARRAYS:
            self._hold(array, getattr(self, array).view())

    def _hold(self, name: str, array: np.ndarray) -> None:
        array.flags.writeable = False
        setattr(self, name, array)

    def _check(self, keys: Sequence[str]) -> None:
        where = f"data set {self.name!r}"
        if len(self.category_ids) != len(self.class_names):
            raise ValueError(
                f"{where}: expected one category id for each of {len(self.class_names)} classes, "
                f"got {len(self.category_ids)}"
            )
        lengths = {name: (len(keys),) for name in _IMAGE_ARRAYS}
        lengths |= {name: (len(self.boxes),) for name in _ANNOTATION_ARRAYS}
        lengths |= {"offsets": (len(keys) + 1,)}
        for name, expected in lengths.items():
            if getattr(self, name).shape != expected:
                got = getattr(self, name).shape
                raise ValueError(f"{where}: {name} must have shape {expected}, got {got}")
        steps = np.diff(self.offsets, prepend=0, append=len(self.boxes))
        if (steps < 0).any() or steps[0] or steps[-1]:
            raise ValueError(f"{where}: offsets must rise from 0 to {len(self.boxes)}")
        with np.errstate(invalid="ignore"):
            good = np.isfinite(self.boxes).all(1) & (self.boxes[:, 2:] > self.boxes[:, :2]).all(1)
        if not good.all():
            got = self.boxes[np.argmin(good)].tolist()
            raise ValueError(
                f"{where}: boxes must be finite xyxy with x2 > x1 and y2 > y1, got {got}"
            )
        if (
            len(self.classes)
            and not 0 <= self.classes.min() <= self.classes.max() < self.num_classes
        ):
            got = f"{self.classes.min()}..{self.classes.max()}"
            raise ValueError(f"{where}: classes must lie in [0, {self.num_classes}), got {got}")
        if len(self.image_ids) and self.image_ids.min() < 0:
            raise ValueError(f"{where}: image ids must not be negative, got {self.image_ids.min()}")
        for what, values in (("key", keys), ("image id", self.image_ids.tolist())):
            if len(set(values)) != len(values):
                raise ValueError(f"{where}: {what} {_first_repeated(values)!r} occurs twice")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Record:
        index = self._position(index)
        rows = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        key = self.key(index)
        return Record(
            key=key,
            path=self._path(key),
            image_id=int(self.image_ids[index]),
            height=int(self.heights[index]),
            width=int(self.widths[index]),
            boxes=self.boxes[rows].copy(),
            classes=self.classes[rows].astype(np.int64),
            iscrowd=self.iscrowd[rows].copy(),
        )

    def _path(self, key: str) -> str:
        if self.sources is None:
            return os.path.join(self.root, key)
        source, _, key = key.partition("/")
        return os.path.join(self.sources.roots[source], key)

    def _position(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"data set {self.name!r} has {len(self)} images, no index {index}")
        return int(index) % len(self)

    def key(self, index: int) -> str:
        """Path of image `index` relative to `root`, with "/" between the parts."""
        index = self._position(index)
        raw = self.key_bytes[self.key_offsets[index] : self.key_offsets[index + 1]].tobytes()
        return raw.decode("utf-8", "surrogateescape")

    def keys(self) -> list[str]:
        return [self.key(index) for index in range(len(self))]

    def select(self, indices: Iterable[int], *, name: str | None = None) -> DetectionDataset:
        """The images `indices` (no repeats), in that order, with their annotations and ids."""
        chosen = np.asarray([self._position(index) for index in indices], np.int64)
        counts = np.diff(self.offsets)[chosen]
        starts = np.cumsum([0, *counts])
        rows = np.repeat(self.offsets[chosen] - starts[:-1], counts) + np.arange(starts[-1])
        return DetectionDataset(
            name=self.name if name is None else name,
            root=self.root,
            class_names=self.class_names,
            category_ids=self.category_ids,
            keys=[self.key(index) for index in chosen],
            offsets=starts,
            boxes=self.boxes[rows],
            sources=self.sources,
            **{array: getattr(self, array)[chosen] for array in _IMAGE_ARRAYS},
            **{array: getattr(self, array)[rows] for array in _ANNOTATION_ARRAYS},
        )

    def with_annotations(
        self,
        *,
        name: str,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        offsets: Any,
        boxes: Any,
        classes: Any,
        iscrowd: Any = None,
        areas: Any = None,
    ) -> DetectionDataset:
        """The same images with other annotations; arguments as in the constructor."""
        return DetectionDataset(
            name=name,
            root=self.root,
            class_names=class_names,
            category_ids=category_ids,
            keys=self.keys(),
            offsets=offsets,
            boxes=boxes,
            classes=classes,
            iscrowd=iscrowd,
            areas=areas,
            sources=self.sources,
            **{array: getattr(self, array) for array in _IMAGE_ARRAYS},
        )

    def register(self, name: str) -> None:
        """Enter this data set into Detectron2's catalogs, in the form that its own tools read.

        Raises:
            ValueError: The name is taken.
        """
        if name in DatasetCatalog.list():
            raise ValueError(
                f"a data set named {name!r} is registered already: choose another name"
            )
        DatasetCatalog.register(name, self.to_dicts)
        MetadataCatalog.get(name).set(
            thing_classes=list(self.class_names),
            thing_dataset_id_to_contiguous_id={c: i for i, c in enumerate(self.category_ids)},
            image_root=self.root,
            evaluator_type="coco",
        )

    def to_dicts(self) -> list[dict[str, Any]]:
        """Detectron2's dataset dicts: contiguous `category_id`, absolute xyxy boxes."""
        return [_to_dict(self[index]) for index in range(len(self))]

    def share_memory(self) -> None:
        """Move the arrays to shared memory, so that spawned workers receive handles, not copies."""
        for name in _ARRAYS:
            if name not in self._shared:
                self._shared[name] = torch.from_numpy(getattr(self, name).copy()).share_memory_()
                self._hold(name, self._shared[name].numpy())

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in self._shared}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name in _ARRAYS:
            self._hold(name, self._shared[name].numpy() if name in self._shared else state[name])

    def __repr__(self) -> str:
        return (
            f"DetectionDataset({self.name!r}, {len(self)} images, {len(self.boxes)} boxes, "
            f"{self.num_classes} classes, root={self.root!r})"
        )


def _first_repeated(values: Sequence[Any]) -> Any:
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    raise AssertionError("called without a repeated value")


def _to_dict(record: Record) -> dict[str, Any]:
    annotations = [
        {
            "bbox": box.tolist(),
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": int(category),
            "iscrowd": int(crowd),
        }
        for box, category, crowd in zip(record.boxes, record.classes, record.iscrowd, strict=True)
    ]
    size = {"height": record.height, "width": record.width} if record.height else {}
    return {
        "file_name": record.path,
        "image_id": record.image_id,
        **size,
        "annotations": annotations,
    }
