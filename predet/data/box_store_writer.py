"""Writing a `BoxStore` shard by shard, by any number of processes, any number of times killed."""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from predet.data.box_store import (
    FORMAT,
    META_FILE,
    ROWS_PER_GROUP,
    SCHEMA,
    BoxRow,
    BoxStore,
    fingerprint,
    read_meta,
    shard_name,
)
from predet.version import __version__

logger = logging.getLogger(__name__)

# Differences in these are said, and the work goes on: they do not change what the boxes mean.
MAY_DIFFER = ("code", "image_root")


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """Where a store's boxes come from. Everything must fit into JSON.

    Attributes:
        method: what made the boxes: "pseudo_label", "selective_search-fast", "coco_json", ...
        parameters: the method's settings, as far as they change the boxes.
        class_names: what `classes` index; None for boxes without classes.
        category_ids: the classes' ids in COCO JSON, used on export; None counts from 1.
        image_root: the folder that keys are relative to.
        dataset: name of the data set.
        seed: seed of the method, None where it draws nothing.
        teacher: of a model that made the boxes: sha256 of the weights, config, file name.
        selection: which of the stored boxes are meant to be used (`top_k`, `score_threshold`); a
            default for readers, which may choose others. Going on with another selection changes
            only this.
        code: version of predet that made it.
    """

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    category_ids: tuple[int, ...] | None = None
    image_root: str = ""
    dataset: str = ""
    seed: int | None = None
    teacher: Mapping[str, str] | None = None
    selection: Mapping[str, Any] | None = None
    code: str = __version__


class BoxStoreWriter:
    """Creates a store, or goes on with one that the same settings began.

    Every process makes its own writer for the same folder; they must share out the shards (for
    instance `missing_shards()[rank::world_size]`), and one calls `finish()` when all are there.

    Args:
        path: the store's folder; created when missing.
        info: where the boxes come from.
        keys: the images, by path relative to `info.image_root`, "/" separated, in store order.
        shard_size: images in a shard; None chooses 16 to 1024 by the number of images. A store
            that was begun keeps the size it was begun with.

    Raises:
        ValueError: no keys, a key that is there twice or is no relative path, a folder with
            something else in it, or a store of other settings or images (each difference named).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        info: StoreInfo,
        keys: Sequence[str],
        shard_size: int | None = None,
    ) -> None:
        self.path = Path(path)
        self.keys = list(keys)
        _check_keys(self.keys, self.path)
        if shard_size is not None and shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {shard_size}")
        size = shard_size or min(1024, max(16, -(-len(self.keys) // 64)))
        meta = json.loads(
            json.dumps(
                {
                    "format": FORMAT,
                    **asdict(info),
                    "fingerprint": fingerprint(self.keys),
                    "shard_size": size,
                    "shards": -(-len(self.keys) // size),
                    "complete": False,
                    "counts": {},
                }
            )
        )
        self.meta = self._begin(meta)
        self.num_classes = None if info.class_names is None else len(info.class_names)
        self._finished = self.meta["complete"] and not self.missing_shards()

    @property
    def num_shards(self) -> int:
        """Number of shards of the finished store."""
        return self.meta["shards"]

    def missing_shards(self) -> list[int]:
        """Numbers of the shards that have no file yet."""
        return [shard for shard in range(self.num_shards) if not self._file(shard).exists()]

    def shard_slice(self, shard: int) -> slice:
        """Which part of `keys` a shard holds."""
        size = self.meta["shard_size"]
        return slice(shard * size, min((shard + 1) * size, len(self.keys)))

    def shard_keys(self, shard: int) -> list[str]:
        """Keys of one shard, in order."""
        return self.keys[self.shard_slice(shard)]

    def write_shard(
        self, shard: int, rows: Iterable[BoxRow], *, skipped: Mapping[str, str] | None = None
    ) -> None:
        """Write one shard whole: beside, synced, then renamed.

        Args:
            rows: a row for every key of the shard that is not in `skipped`, in the shard's order.
            skipped: key -> reason of the images that have no row.

        Raises:
            ValueError: other keys than the shard's, or arrays that do not fit together.
        """
        rows, skipped = list(rows), dict(skipped or {})
        expected = [key for key in self.shard_keys(shard) if key not in skipped]
        if [row.key for row in rows] != expected:
            raise ValueError(
                f"shard {shard} of {self.path} takes {len(expected)} images {_some(expected)}, "
                f"got {len(rows)} {_some([row.key for row in rows])}"
            )
        table = _table([_checked(row, self.num_classes) for row in rows])
        table = table.replace_schema_metadata({"skipped": json.dumps(skipped, sort_keys=True)})
        temporary = self.path / f".{shard_name(shard, self.num_shards)}.{uuid.uuid4().hex}.tmp"
        try:
            with temporary.open("wb") as file:
                pq.write_table(
                    table,
                    file,
                    compression="snappy",
                    use_dictionary=False,
                    write_page_checksum=True,
                    row_group_size=ROWS_PER_GROUP,
                )
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._file(shard))
        except OSError:  # a full disk: each new attempt would fill it further
            temporary.unlink(missing_ok=True)
            raise

    def finish(self) -> BoxStore:
        """Count what was written, mark the store as complete, and open it.

        One that was finished before stays as it is: runs know a store by its counts.

        Raises:
            ValueError: shards are missing.
        """
        if self._finished:
            return BoxStore(self.path)
        missing = self.missing_shards()
        if missing:
            raise ValueError(
                f"box store {self.path} cannot be finished: {len(missing)} of {self.num_shards} "
                f"shards are missing, the first is number {missing[0]}"
            )
        store = BoxStore(self.path, allow_partial=True)
        least = 0 if store.holds_levels else -np.inf
        sizes = np.concatenate([rows.count(rows.scores >= least) for rows in store.scores()])
        counts = {
            "images": len(sizes),
            "boxes": int(sizes.sum()),
            "images_without_boxes": int((sizes == 0).sum()),
            "skipped": len(store.skipped),
        }
        for leftover in self.path.glob(".*.tmp"):  # of a killed run
            leftover.unlink(missing_ok=True)
        self.meta = {**self.meta, "complete": True, "counts": counts}
        _write_json(self.path / META_FILE, self.meta)
        return BoxStore(self.path)

    def _begin(self, meta: dict[str, Any]) -> dict[str, Any]:
        """Write `meta.json`, or compare with the one that is there and keep it."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / META_FILE).exists():
            foreign = [item.name for item in self.path.iterdir() if not item.name.endswith(".tmp")]
            if foreign:
                raise ValueError(
                    f"{self.path} is not empty and no box store (holds {_some(sorted(foreign))}); "
                    "choose another folder"
                )
            _write_json(self.path / META_FILE, meta)
            return meta
        there = read_meta(self.path)
        own = {"shard_size", "shards", "complete", "counts", "selection"}
        differing = [name for name in meta if name not in own and there.get(name) != meta.get(name)]
        for name in differing:
            if name in MAY_DIFFER:
                logger.warning(
                    "box store %s was begun with %s %r, now %r",
                    self.path,
                    name,
                    there.get(name),
                    meta[name],
                )
        fatal = [name for name in differing if name not in MAY_DIFFER]
        if fatal:
            listed = "\n".join(f"  {n}: there {there.get(n)!r}, now {meta[n]!r}" for n in fatal)
            raise ValueError(
                f"{self.path} holds a box store of other settings or images:\n{listed}\n"
                "Choose another folder, or remove this one."
            )
        if there["selection"] != meta["selection"]:
            there["selection"] = meta["selection"]
            _write_json(self.path / META_FILE, there)
        return there

    def _file(self, shard: int) -> Path:
        return self.path / shard_name(shard, self.num_shards)


def _check_keys(keys: list[str], path: Path) -> None:
    if not keys:
        raise ValueError(f"box store {path}: there are no images to store boxes of")
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise ValueError(f"box store {path}: {len(twice)} keys are there twice: {_some(twice)}")
    for key in keys:
        if not key or key.startswith("/") or "\\" in key or "\n" in key:
            raise ValueError(
                f"box store {path}: a key is a path relative to the image root with '/' between "
                f"folders, got {key!r}"
            )
        try:
            key.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"box store {path}: key {key!r} is not valid UTF-8") from error


def _checked(row: BoxRow, num_classes: int | None) -> BoxRow:
    """The row in the store's types.

    Raises:
        ValueError: lengths that differ, values that are not finite, boxes upside down, a class
            that the store does not know.
    """
    boxes = np.asarray(row.boxes, dtype=np.float32).reshape(-1, 4)
    scores = np.asarray(row.scores, dtype=np.float32).reshape(-1)
    classes = np.asarray(row.classes, dtype=np.int32).reshape(-1)
    if not len(boxes) == len(scores) == len(classes):
        raise ValueError(
            f"image '{row.key}': {len(boxes)} boxes, {len(scores)} scores, {len(classes)} classes"
        )
    if row.height < 1 or row.width < 1:
        raise ValueError(f"image '{row.key}': size {row.height} x {row.width} is not possible")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ValueError(f"image '{row.key}': boxes or scores are not finite")
    wrong = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    if wrong.any():
        raise ValueError(
            f"image '{row.key}': boxes must be xyxy with x1 <= x2 and y1 <= y2, "
            f"got {boxes[wrong][0].tolist()}"
        )
    last = 0 if num_classes is None else num_classes - 1
    if len(classes) and (classes.min() < 0 or classes.max() > last):
        raise ValueError(
            f"image '{row.key}': classes must be 0 to {last}, "
            f"got {classes.min()} to {classes.max()}"
        )
    return BoxRow(row.key, int(row.height), int(row.width), boxes, scores, classes)


def _table(rows: list[BoxRow]) -> pa.Table:
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([len(row.scores) for row in rows], out=offsets[1:])

    def flat(name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        parts = [getattr(row, name) for row in rows]
        return np.concatenate([np.empty(shape, dtype), *parts]).astype(dtype).reshape(-1)

    four = pa.FixedSizeListArray.from_arrays(pa.array(flat("boxes", (0, 4), np.float32)), 4)
    where = pa.array(offsets)
    return pa.Table.from_arrays(
        [
            pa.array([row.key for row in rows], pa.string()),
            pa.array([row.height for row in rows], pa.int32()),
            pa.array([row.width for row in rows], pa.int32()),
            pa.ListArray.from_arrays(where, four),
            pa.ListArray.from_arrays(where, pa.array(flat("scores", (0,), np.float32))),
            pa.ListArray.from_arrays(where, pa.array(flat("classes", (0,), np.int32))),
        ],
        schema=SCHEMA,
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, sort_keys=True, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _some(names: Sequence[str], count: int = 3) -> str:
    """The first few names, for a message."""
    more = f", ... ({len(names)} in all)" if len(names) > count else ""
    return "[" + ", ".join(repr(name) for name in names[:count]) + more + "]"
