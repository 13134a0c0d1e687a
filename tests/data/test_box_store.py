"""BoxStore: what is written is read back, by whoever wrote it and however often it was killed."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from predet.data.box_store import BoxRow, BoxStore
from predet.data.box_store_writer import BoxStoreWriter, StoreInfo

INFO = StoreInfo(
    method="pseudo_label",
    parameters={"nms_iou": 0.9},
    class_names=("cat", "dog"),
    image_root="/images",
    teacher={"sha256": "aa"},
)


def key_of(number: int) -> str:
    return f"n0{number % 3}/img.{number:04d}.jpg"


def make_row(number: int) -> BoxRow:
    """Boxes that depend on the image alone; every seventh image has none."""
    rng = np.random.default_rng(number)
    count = 0 if number % 7 == 0 else int(rng.integers(1, 40))
    start = rng.uniform(0, 90, (count, 2))
    return BoxRow(
        key=key_of(number),
        height=100 + number,
        width=200 + number,
        boxes=np.concatenate([start, start + rng.uniform(1, 9, (count, 2))], axis=1),
        scores=np.sort(rng.random(count))[::-1],
        classes=rng.integers(0, 2, count),
    )


def write(path: Path, count: int = 50, **options: object) -> BoxStore:
    writer = BoxStoreWriter(path, info=INFO, keys=[key_of(n) for n in range(count)], **options)
    for shard in writer.missing_shards():
        part = writer.shard_slice(shard)
        writer.write_shard(shard, [make_row(n) for n in range(part.start, part.stop)])
    return writer.finish()


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def assert_same_row(got: BoxRow, expected: BoxRow) -> None:
    assert (got.key, got.height, got.width) == (expected.key, expected.height, expected.width)
    np.testing.assert_array_equal(got.boxes, expected.boxes.astype(np.float32))
    np.testing.assert_array_equal(got.scores, expected.scores.astype(np.float32))
    np.testing.assert_array_equal(got.classes, expected.classes)
    assert got.boxes.dtype == np.float32
    assert got.boxes.shape == (len(expected.scores), 4)
    assert got.classes.dtype == np.int64


@pytest.mark.parametrize("shard_size", [1, 7, 300])
def test_every_row_comes_back_by_key_and_in_order(tmp_path: Path, shard_size: int) -> None:
    # 300 rows in one shard are three groups of rows.
    count = 300 if shard_size == 300 else 30
    store = write(tmp_path / "store", count, shard_size=shard_size)
    assert len(store) == count
    assert store.keys == [key_of(n) for n in range(count)]
    for number in np.random.default_rng(0).permutation(count):
        assert_same_row(store[key_of(number)], make_row(number))
    for number, row in enumerate(store):
        assert_same_row(row, make_row(number))


def test_rows_are_flat_arrays_too(tmp_path: Path) -> None:
    store = write(tmp_path / "store", 20, shard_size=8)
    sizes = []
    for columns in store.shards():
        sizes += np.diff(columns.offsets).tolist()
        assert len(columns.boxes) == len(columns.scores) == columns.offsets[-1]
    assert sizes == [len(make_row(n).scores) for n in range(20)]


def test_meta_says_what_made_the_store(tmp_path: Path) -> None:
    store = write(tmp_path / "store", 20)
    rows = [make_row(n) for n in range(20)]
    assert store.meta["format"] == 1
    assert store.meta["method"] == "pseudo_label"
    assert store.meta["parameters"] == {"nms_iou": 0.9}
    assert store.meta["teacher"] == {"sha256": "aa"}
    assert store.meta["counts"] == {
        "images": 20,
        "boxes": sum(len(row.scores) for row in rows),
        "images_without_boxes": 3,
        "skipped": 0,
    }
    assert store.class_names == ("cat", "dog")


@pytest.mark.parametrize("method", ["selective_search-fast", "detector"])
def test_what_tells_levels_of_selective_search_is_no_box(tmp_path: Path, method: str) -> None:
    """In a store of another method a score below 0 is one like any other."""
    boxes = np.float32([[0, 0, 9, 9], [2, 2, 8, 8], [2, 2, 8, 8], [0, 0, 9, 9], [2, 2, 8, 8]])
    scores = np.float32([1, 0.5, -3, -2, -1])
    none = BoxRow("b", 10, 10, boxes[:0], scores[:0], np.zeros(0, np.int64))
    rows = [BoxRow(key, 10, 10, boxes, scores, np.arange(5) % 2) for key in "ac"]
    info = StoreInfo(method=method, class_names=("x", "y"))
    writer = BoxStoreWriter(tmp_path / "store", info=info, keys=["b", "a", "c"], shard_size=2)
    writer.write_shard(0, [none, rows[0]])
    writer.write_shard(1, [rows[1]])
    store = pickle.loads(pickle.dumps(writer.finish()))
    assert store.holds_levels is (method != "detector")
    count = 2 if store.holds_levels else 5
    for row in (store["a"], list(store)[2]):
        assert row.boxes.tolist() == boxes[:count].tolist()
        assert row.scores.tolist() == scores[:count].tolist()
        assert row.classes.tolist() == [0, 1, 0, 1, 0][:count]
    assert [columns.offsets.tolist() for columns in store.shards()] == [[0, 0, count], [0, count]]
    assert store.with_levels("a").scores.tolist() == scores.tolist()
    assert store.meta["counts"] == {
        "images": 3,
        "boxes": 2 * count,
        "images_without_boxes": 1,
        "skipped": 0,
    }


def test_a_finished_store_stays_what_runs_know_it_by(tmp_path: Path) -> None:
    path = write(tmp_path / "store", 20).path
    meta = json.loads((path / "meta.json").read_text())
    meta["counts"]["boxes"] += 1  # an earlier version counted in another way
    (path / "meta.json").write_text(json.dumps(meta))
    assert write(path, 20).meta == meta


def test_a_missing_key_names_store_and_key(tmp_path: Path) -> None:
    store = write(tmp_path / "store", 5)
    with pytest.raises(KeyError, match=r"store holds no image 'n9/x\.jpg'"):
        store["n9/x.jpg"]
    assert "n9/x.jpg" not in store
    assert key_of(3) in store


def test_skipped_images_have_no_row_and_say_why(tmp_path: Path) -> None:
    keys = [key_of(n) for n in range(6)]
    writer = BoxStoreWriter(tmp_path / "store", info=INFO, keys=keys, shard_size=3)
    writer.write_shard(0, [make_row(0), make_row(2)], skipped={keys[1]: "truncated"})
    writer.write_shard(1, [make_row(n) for n in (3, 4, 5)])
    store = writer.finish()
    assert store.skipped == {keys[1]: "truncated"}
    assert store.meta["counts"]["skipped"] == 1
    assert len(store) == 5
    with pytest.raises(KeyError, match=r"skipped when the store was made \(truncated"):
        store[keys[1]]


def test_several_writers_make_the_same_store_as_one(tmp_path: Path) -> None:
    write(tmp_path / "one", shard_size=8)
    keys = [key_of(n) for n in range(50)]
    writers = [
        BoxStoreWriter(tmp_path / "three", info=INFO, keys=keys, shard_size=8) for _ in range(3)
    ]
    for rank, writer in reversed(list(enumerate(writers))):
        for shard in range(writer.num_shards)[rank::3]:
            part = writer.shard_slice(shard)
            writer.write_shard(shard, [make_row(n) for n in range(part.start, part.stop)])
    writers[0].finish()
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


KILLED = """
import sys, time
sys.path.insert(0, {here!r})
from test_box_store import INFO, key_of, make_row
from predet.data.box_store_writer import BoxStoreWriter
writer = BoxStoreWriter({path!r}, info=INFO, keys=[key_of(n) for n in range(50)], shard_size=4)
for shard in writer.missing_shards():
    part = writer.shard_slice(shard)
    writer.write_shard(shard, [make_row(n) for n in range(part.start, part.stop)])
    print(shard, flush=True)
    time.sleep(0.05)
"""


def test_a_killed_writer_goes_on_and_the_store_is_the_same(tmp_path: Path) -> None:
    write(tmp_path / "whole", shard_size=4)
    path = tmp_path / "killed"
    script = KILLED.format(here=str(Path(__file__).parent), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(4):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    (path / ".boxes-00009-of-00013.parquet.dead.tmp").write_bytes(b"half a shard")

    with pytest.raises(ValueError, match=r"not finished: \d+ of 13 shards"):
        BoxStore(path)
    before = {file.name: file.stat().st_mtime_ns for file in path.glob("boxes-*")}
    assert 4 <= len(before) < 13
    partial = BoxStore(path, allow_partial=True)
    assert len(partial) == 4 * len(before)
    assert_same_row(partial[key_of(9)], make_row(9))

    time.sleep(0.01)
    write(path)  # the shard size of the store that is there is kept
    assert contents(path) == contents(tmp_path / "whole")
    for name, written in before.items():
        assert (path / name).stat().st_mtime_ns == written, "a finished shard was written again"


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = BoxStoreWriter(tmp_path / "store", info=INFO, keys=[key_of(1)])

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        writer.write_shard(0, [make_row(1)])
    assert [item.name for item in (tmp_path / "store").iterdir()] == ["meta.json"]


def test_a_store_survives_pickling_and_forking(tmp_path: Path) -> None:
    store = write(tmp_path / "store", 20, shard_size=8)
    store[key_of(1)]
    assert_same_row(pickle.loads(pickle.dumps(store))[key_of(11)], make_row(11))
    child = os.fork()
    if child == 0:
        same = all(np.array_equal(store[k].classes, make_row(n).classes) for n, k in KEYS)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


KEYS = [(n, key_of(n)) for n in range(20)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "other"}, "method: there 'pseudo_label', now 'other'"),
        ({"parameters": {"nms_iou": 0.5}}, r"parameters: there \{'nms_iou': 0.9\}"),
        ({"teacher": {"sha256": "bb"}}, "'aa'.*'bb'"),
        ({"class_names": ("dog", "cat")}, "class_names"),
        ({"seed": 3}, "seed: there None, now 3"),
    ],
)
def test_going_on_with_other_settings_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    write(tmp_path / "store", 5)
    before = contents(tmp_path / "store")
    other = StoreInfo(**{**INFO.__dict__, **change})
    with pytest.raises(ValueError, match=message):
        BoxStoreWriter(tmp_path / "store", info=other, keys=[key_of(n) for n in range(5)])
    assert contents(tmp_path / "store") == before


def test_going_on_with_other_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "store", 5)
    with pytest.raises(ValueError, match="fingerprint"):
        BoxStoreWriter(tmp_path / "store", info=INFO, keys=[key_of(n) for n in range(6)])


def test_a_folder_with_other_things_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"not empty and no box store \(holds \['photo.jpg'\]"):
        BoxStoreWriter(tmp_path, info=INFO, keys=["a"])
    assert [file.name for file in tmp_path.iterdir()] == ["photo.jpg"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["a", "b", "a"], r"1 keys are there twice: \['a'\]"),
        ([], "no images"),
        (["/etc/a.jpg"], "relative"),
        (["a\\b.jpg"], "relative"),
        (["\udcff.jpg"], "UTF-8"),
    ],
)
def test_bad_keys_are_refused(tmp_path: Path, keys: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BoxStoreWriter(tmp_path / "store", info=INFO, keys=keys)


BOX = [[0.0, 0.0, 5.0, 5.0]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (BoxRow("a", 9, 9, BOX, [1.0, 0.5], [0]), "1 boxes, 2 scores, 1 classes"),
        (BoxRow("a", 9, 9, [[0, 0, float("nan"), 5]], [1.0], [0]), "not finite"),
        (BoxRow("a", 9, 9, BOX, [float("inf")], [0]), "not finite"),
        (BoxRow("a", 9, 9, [[5, 0, 0, 5]], [1.0], [0]), r"xyxy.*\[5.0, 0.0, 0.0, 5.0\]"),
        (BoxRow("a", 9, 9, BOX, [1.0], [2]), "classes must be 0 to 1, got 2 to 2"),
        (BoxRow("a", 9, 9, BOX, [1.0], [-1]), "classes must be 0 to 1"),
        (BoxRow("a", 0, 9, BOX, [1.0], [0]), "size 0 x 9"),
        (BoxRow("b", 9, 9, BOX, [1.0], [0]), r"takes 1 images \['a'\], got 1 \['b'\]"),
    ],
)
def test_bad_rows_are_refused_and_nothing_is_written(
    tmp_path: Path, row: BoxRow, message: str
) -> None:
    writer = BoxStoreWriter(tmp_path / "store", info=INFO, keys=["a"])
    with pytest.raises(ValueError, match=message):
        writer.write_shard(0, [row])
    assert writer.missing_shards() == [0]
    with pytest.raises(ValueError, match="1 of 1 shards are missing"):
        writer.finish()


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "store", 5)
    meta = json.loads((tmp_path / "store/meta.json").read_text())
    (tmp_path / "store/meta.json").write_text(json.dumps({**meta, "format": 2}))
    with pytest.raises(ValueError, match="has format 2, this version of predet reads format 1"):
        BoxStore(tmp_path / "store")


def test_no_store_and_broken_meta(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no box store in .*holds no meta\.json"):
        BoxStore(tmp_path)
    (tmp_path / "meta.json").write_text('{"format": 1,')
    with pytest.raises(ValueError, match=r"meta\.json is not JSON"):
        BoxStore(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone"])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: str) -> None:
    write(tmp_path / "store", 40, shard_size=8)
    shard = tmp_path / "store/boxes-00002-of-00005.parquet"
    data = bytearray(shard.read_bytes())
    if damage == "gone":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(data[: len(data) // 2])
    else:
        chunk = pq.ParquetFile(shard).metadata.row_group(0).column(3)  # the boxes
        data[chunk.data_page_offset + chunk.total_compressed_size - 20] ^= 0xFF
        shard.write_bytes(data)
    with pytest.raises(ValueError, match="boxes-00002-of-00005"):
        BoxStore(tmp_path / "store")[key_of(20)]


def test_the_same_key_in_two_shards_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "store", 10, shard_size=5)
    one, two = sorted((tmp_path / "store").glob("boxes-*"))
    two.write_bytes(one.read_bytes())
    with pytest.raises(ValueError, match=r"key 'n00/img\.0000\.jpg' is there twice"):
        BoxStore(tmp_path / "store")
