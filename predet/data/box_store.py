"""BoxStore: the boxes of many images in one folder, made once by a tool and read-only afterwards.

    store/
      meta.json                        what made it: format, method, parameters, teacher, counts
      boxes-00000-of-00012.parquet     one row per image: key, height, width, boxes, scores, classes
      ...

Rows are keyed by the image's path relative to the image root. The list of keys is cut into shards
before anything is computed, and a shard's file appears, by rename, only when it is whole. So
several processes can write different shards, a killed job goes on with the shards that are not
there, and the finished store is the same whoever wrote which part.

Boxes are absolute xyxy float32 in the frame of the original image (height x width pixels, EXIF
orientation applied).

A store of Selective Search may have, behind the boxes of an image, rows that score below 0 and only
tell levels (`predet.ops.selective_search.to_rows`). They are no boxes: who reads a store does not
see them, but for `with_levels` and `scores`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

logger = logging.getLogger(__name__)

FORMAT = 1
META_FILE = "meta.json"
ROWS_PER_GROUP = 128  # what reading one image decodes
OPEN_FILES = 16
DECODED_GROUPS = 8

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("boxes", pa.list_(pa.list_(pa.float32(), 4)), nullable=False),
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
        pa.field("classes", pa.list_(pa.int32()), nullable=False),
    ]
)


class BoxRow(NamedTuple):
    """The boxes of one image. N boxes, in the order in which the tool stored them (best first)."""

    key: str
    height: int
    width: int
    boxes: np.ndarray  # (N, 4) float32 absolute xyxy, frame of the original image
    scores: np.ndarray  # (N,) float32
    classes: np.ndarray  # (N,) int64, an index into the store's class names

    def take(self, which: np.ndarray) -> BoxRow:
        """The row with some of its boxes: positions, or (N,) bool."""
        return self._replace(
            boxes=self.boxes[which], scores=self.scores[which], classes=self.classes[which]
        )


class BoxColumns(NamedTuple):
    """The rows of one shard, flat: the boxes of row i are `boxes[offsets[i]:offsets[i + 1]]`."""

    keys: list[str]  # R
    heights: np.ndarray  # (R,) int32
    widths: np.ndarray  # (R,) int32
    offsets: np.ndarray  # (R + 1,) int64
    boxes: np.ndarray  # (T, 4) float32
    scores: np.ndarray  # (T,) float32
    classes: np.ndarray  # (T,) int32


class ScoreColumns(NamedTuple):
    """What `BoxStore.scores` reads of one shard: all but boxes and classes; levels too."""

    keys: list[str]  # R
    heights: np.ndarray  # (R,) int32
    widths: np.ndarray  # (R,) int32
    offsets: np.ndarray  # (R + 1,) int64
    scores: np.ndarray  # (T,) float32

    def count(self, which: np.ndarray) -> np.ndarray:
        """How many of the (T,) bool `which` each row has -> (R,) int64."""
        return np.diff(_offsets_of(which, self.offsets))


class BoxStore:
    """A finished store, open for reading.

    Files are memory-mapped; one image costs the decoding of its group of rows. Safe to use from
    forked loader workers and to pickle.

    Args:
        path: the store's folder.
        allow_partial: also open a store whose making has not finished, with a warning; it then
            holds only the images of the shards that are there.

    Raises:
        ValueError: no store there, another format version, not finished, or a damaged file.
    """

    def __init__(self, path: str | os.PathLike[str], *, allow_partial: bool = False) -> None:
        if path is None:  # as configs have it, until they are told
            raise ValueError("no box store is named: set data.store to the folder of one")
        self.path = Path(path)
        self.allow_partial = allow_partial
        self.meta = read_meta(self.path)
        self._shards = self._find_shards()
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], BoxColumns] = OrderedDict()
        self._index, self._first_row = self._read_index()
        self._keys: list[str] | None = None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, or None where the boxes carry no class (all are 0)."""
        names = self.meta["class_names"]
        return None if names is None else tuple(names)

    @functools.cached_property
    def holds_levels(self) -> bool:
        """Whether the boxes are regions of Selective Search whose order can be drawn anew.

        A store of that method may hold boxes alone: filtered ones, or ones from elsewhere.
        """
        if not self.meta["method"].startswith("selective_search"):
            return False
        for columns in self.scores():
            filled = np.flatnonzero(np.diff(columns.offsets))
            if len(filled):
                return bool(columns.count(columns.scores < 0)[filled[0]])
        return False

    def key(self, number: int) -> str:
        """The key of row `number`, in the store's order."""
        if self._keys is None:
            self._keys = list(self._index)
        return self._keys[number]

    @property
    def keys(self) -> list[str]:
        """All keys, in the store's order."""
        return list(self._index)

    @property
    def skipped(self) -> dict[str, str]:
        """Images that the tool could not read, with the reason; they have no row."""
        found: dict[str, str] = {}
        for position in range(len(self._shards)):
            metadata = self._file(position).schema_arrow.metadata or {}
            found.update(json.loads(metadata.get(b"skipped", b"{}")))
        return found

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: str) -> bool:
        return key in self._index

    def __iter__(self) -> Iterator[BoxRow]:
        for columns in self.shards():
            for row in range(len(columns.keys)):
                yield _row(columns, row)

    def __getitem__(self, key: str) -> BoxRow:
        """The row of one image.

        Raises:
            KeyError: the store has no such image; names store and key.
        """
        row = self.with_levels(key)
        return row.take(row.scores >= 0) if self.holds_levels else row

    def with_levels(self, key: str) -> BoxRow:
        """The same and, if the store has them, the rows that tell levels of Selective Search."""
        number = self._index.get(key)
        if number is None:
            reason = self.skipped.get(key)
            skipped = f": it was skipped when the store was made ({reason})" if reason else ""
            raise KeyError(f"box store {self.path} holds no image '{key}'{skipped}")
        position = int(np.searchsorted(self._first_row, number, side="right")) - 1
        group, row = divmod(number - int(self._first_row[position]), ROWS_PER_GROUP)
        return _row(self._group(position, group), row)

    def shards(self) -> Iterator[BoxColumns]:
        """The whole store, shard by shard, as flat arrays."""
        for position, path in enumerate(self._shards):
            with _reading(path):
                table = self._file(position).read(use_threads=False)
            columns = _columns(table)
            yield _boxes_alone(columns) if self.holds_levels else columns

    def scores(self) -> Iterator[ScoreColumns]:
        """All rows without boxes and classes, at a fifth of the cost; those of levels too."""
        for position, path in enumerate(self._shards):
            with _reading(path):
                table = self._file(position).read(
                    columns=["key", "height", "width", "scores"], use_threads=False
                )
            scores = _list_array(table, "scores")
            yield ScoreColumns(
                keys=table["key"].to_pylist(),
                heights=table["height"].to_numpy(),
                widths=table["width"].to_numpy(),
                offsets=_offsets(scores),
                scores=scores.flatten().to_numpy(zero_copy_only=False),
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict(), "_groups": OrderedDict(), "_keys": None}

    def _find_shards(self) -> list[Path]:
        count = self.meta["shards"]
        wanted = [self.path / shard_name(shard, count) for shard in range(count)]
        present = [path for path in wanted if path.exists()]
        if len(present) == count and (self.meta["complete"] or self.allow_partial):
            return present
        state = (
            f"box store {self.path} is not finished: {len(present)} of {count} shards are there"
            if not self.meta["complete"]
            else f"box store {self.path} was finished but {count - len(present)} of its {count} "
            f"shards are gone, the first {next(p for p in wanted if not p.exists()).name}"
        )
        if not self.allow_partial:
            raise ValueError(f"{state}; run the command that makes it again, it goes on from there")
        logger.warning("%s; reading what there is", state)
        return present

    def _read_index(self) -> tuple[dict[str, int], np.ndarray]:
        """Row number of every key, and the first row number of every shard plus the total."""
        index: dict[str, int] = {}
        first = [0]
        for position, path in enumerate(self._shards):
            with _reading(path):
                keys = self._file(position).read(columns=["key"], use_threads=False)["key"]
            for key in keys.to_pylist():
                if key in index:
                    raise ValueError(f"box store {self.path}: key '{key}' is there twice ({path})")
                index[key] = len(index)
            first.append(len(index))
        expected = self.meta["counts"].get("images", len(index))
        if not self.allow_partial and len(index) != expected:
            raise ValueError(
                f"box store {self.path}: {META_FILE} says {expected} images, the shards hold "
                f"{len(index)}"
            )
        return index, np.asarray(first)

    def _file(self, position: int) -> pq.ParquetFile:
        path = self._shards[position]
        if position not in self._files:
            with _reading(path):
                self._files[position] = open_shard(path)
            while len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(position)
        return self._files[position]

    def _group(self, position: int, group: int) -> BoxColumns:
        if (position, group) not in self._groups:
            with _reading(self._shards[position]):
                table = self._file(position).read_row_group(group, use_threads=False)
            self._groups[position, group] = _columns(table)
            while len(self._groups) > DECODED_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end((position, group))
        return self._groups[position, group]


def shard_name(shard: int, count: int) -> str:
    """File name of one shard of `count`."""
    return f"boxes-{shard:05d}-of-{count:05d}.parquet"


def read_meta(path: Path) -> dict[str, Any]:
    """`meta.json` of a store whose format this version reads.

    Raises:
        ValueError: not there, not JSON, or another format version.
    """
    file = path / META_FILE
    if not file.is_file():
        raise ValueError(f"no box store in {path}: it holds no {META_FILE}")
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    version = meta.get("format") if isinstance(meta, dict) else None
    if version != FORMAT:
        raise ValueError(
            f"box store {path} has format {version!r}, this version of predet reads format "
            f"{FORMAT}; make the store again, or import its boxes from COCO JSON"
        )
    return meta


def fingerprint(keys: Sequence[str]) -> str:
    """sha256 of the list of image keys: two data sets with the same images in order agree."""
    return hashlib.sha256("\n".join(keys).encode("utf-8", "surrogateescape")).hexdigest()


def open_shard(path: Path) -> pq.ParquetFile:
    """Memory-map one shard."""
    return pq.ParquetFile(path, memory_map=True, pre_buffer=False, page_checksum_verification=True)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what pyarrow raises on a damaged file into one message that names file and cure."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); remove that file and run the command that makes the "
            "store again: only this shard is made anew"
        ) from error


def _columns(table: pa.Table) -> BoxColumns:
    boxes = _list_array(table, "boxes")
    return BoxColumns(
        keys=table["key"].to_pylist(),
        heights=table["height"].to_numpy(),
        widths=table["width"].to_numpy(),
        offsets=_offsets(boxes),
        boxes=boxes.flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, 4),
        scores=_list_array(table, "scores").flatten().to_numpy(zero_copy_only=False),
        classes=_list_array(table, "classes").flatten().to_numpy(zero_copy_only=False),
    )


def _boxes_alone(columns: BoxColumns) -> BoxColumns:
    """Without the rows that only tell levels of Selective Search."""
    kept = columns.scores >= 0
    return columns._replace(
        offsets=_offsets_of(kept, columns.offsets),
        boxes=columns.boxes[kept],
        scores=columns.scores[kept],
        classes=columns.classes[kept],
    )


def _offsets_of(kept: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Where rows begin and end when of all that they have only (T,) bool `kept` is kept."""
    return np.append(0, np.cumsum(kept, dtype=np.int64))[offsets]


def _offsets(lists: pa.Array) -> np.ndarray:
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _list_array(table: pa.Table, name: str) -> pa.Array:
    column = table[name].combine_chunks()
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column


def _row(columns: BoxColumns, row: int) -> BoxRow:
    part = slice(columns.offsets[row], columns.offsets[row + 1])
    return BoxRow(
        key=columns.keys[row],
        height=int(columns.heights[row]),
        width=int(columns.widths[row]),
        boxes=columns.boxes[part].copy(),
        scores=columns.scores[part].copy(),
        classes=columns.classes[part].astype(np.int64),
    )
