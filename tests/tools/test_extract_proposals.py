"""tools/extract_proposals.py: Selective Search of a folder of images into a box store."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from predet.data.box_store import BoxStore
from predet.data.edge_boxes import EdgeBoxSearch
from predet.data.images import BadSampleError, read_image
from predet.ops.selective_search import from_rows, rank, selective_search

TOOL = Path(__file__).parents[2] / "tools" / "extract_proposals.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of soft noise in folders of equal file names, and one that cannot be read."""
    root = tmp_path_factory.mktemp("images")
    for seed, name in enumerate(("a/1.png", "a/2.png", "b/1.png", "b/2.png")):
        size = (90 + 40 * seed, 200 - 30 * seed, 3)
        noise = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
        soft = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 5), None, 0, 255, cv2.NORM_MINMAX)
        (root / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(root / name), soft)
    (root / "a" / "broken.jpg").write_bytes(b"no image")
    return root


def extract(tool: ModuleType, folder: Path, output: Path, *options: str) -> BoxStore:
    command = ["--images", str(folder), "--output", str(output), "--workers", "0", *options]
    tool.main(command)
    return BoxStore(output)


def as_set(boxes: np.ndarray) -> set[tuple[float, ...]]:
    return set(map(tuple, boxes.tolist()))


def test_rows_are_those_of_a_direct_search(tool, folder, tmp_path) -> None:
    store = extract(tool, folder, tmp_path / "store", "--resize", "120", "--mode", "single")
    assert store.keys == ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]
    assert list(store.skipped) == ["a/broken.jpg"]
    assert store.meta["method"] == "selective_search-single"
    assert store.meta["selection"] == {"top_k": 30, "score_threshold": 0.0}
    for key in store.keys:
        row = store.with_levels(key)
        image = read_image(folder / key)
        assert (row.height, row.width) == image.shape[:2]
        scale = 120 / max(image.shape[:2])
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        found = selective_search(
            cv2.resize(image, size, interpolation=cv2.INTER_AREA), mode="single"
        )
        back = np.float32([row.width / size[0], row.height / size[1]] * 2)
        again = from_rows(row.boxes, row.scores)
        assert as_set(again.boxes) == as_set(found.boxes * back)
        assert sorted(again.all_levels) == sorted(found.all_levels)
        assert len(store[key].boxes) == len(found.boxes)
        assert (np.diff(store[key].scores) < 0).all()
        assert (row.boxes[:, 2:] <= (row.width, row.height)).all()


def test_the_order_is_drawn_from_seed_and_key(tool, folder, tmp_path) -> None:
    options = ("--resize", "off", "--mode", "single", "--min-size", "40")
    stores = [
        extract(tool, folder, tmp_path / str(i), "--seed", seed, *options)
        for i, seed in enumerate(("0", "0", "1"))
    ]
    rows = [store.with_levels("a/1.png") for store in stores]
    np.testing.assert_array_equal(rows[0].boxes, rows[1].boxes)
    assert not np.array_equal(rows[0].boxes, rows[2].boxes)
    assert as_set(rows[0].boxes) == as_set(rows[2].boxes)
    orders = [rank(from_rows(row.boxes, row.scores), 9) for row in rows]
    np.testing.assert_array_equal(orders[0], orders[2])


def test_detreg_recipe_is_what_detreg_does(tool, folder, tmp_path) -> None:
    store = extract(tool, folder, tmp_path / "store", "--recipe", "detreg")
    for key in store.keys:
        rgb = read_image(folder / key)
        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(cv2.resize(rgb, (128, 128)))
        search.switchToSelectiveSearchFast()
        boxes = search.process().astype(np.float32)
        boxes[:, 2:] += boxes[:, :2]
        boxes *= np.float32([rgb.shape[1] / 128, rgb.shape[0] / 128] * 2)
        assert as_set(store[key].boxes) == as_set(boxes)


def test_a_killed_job_goes_on_and_ends_the_same(tool, folder, tmp_path) -> None:
    options = ("--mode", "single", "--shard-size", "2")
    whole = tmp_path / "whole"
    extract(tool, folder, whole, *options)
    files = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert len(files) == 4
    shard = sorted(whole.glob("*.parquet"))[1]
    kept = sorted(whole.glob("*.parquet"))[0].stat().st_mtime_ns
    shard.unlink()
    extract(tool, folder, whole, *options)
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == files
    assert sorted(whole.glob("*.parquet"))[0].stat().st_mtime_ns == kept
    with pytest.raises(SystemExit, match="other settings"):
        extract(tool, folder, whole, *options, "--sigma", "0.9")


@pytest.mark.slow
def test_a_job_killed_without_warning_goes_on(tool, folder, tmp_path) -> None:
    command = [sys.executable, str(TOOL), "--images", str(folder), "--workers", "2"]
    command += ["--mode", "quality", "--shard-size", "1", "--output"]
    job = subprocess.Popen(
        [*command, str(tmp_path / "killed")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    while job.poll() is None and not list((tmp_path / "killed").glob("*.parquet")):
        time.sleep(0.01)
    job.kill()
    job.communicate(timeout=60)  # ends when no worker holds the other side any more
    assert job.returncode == -signal.SIGKILL
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.parquet")}
    assert 0 < len(done) < 4
    for name in ("killed", "whole"):
        subprocess.run([*command, str(tmp_path / name)], check=True, capture_output=True)
    kept = {name: (tmp_path / "killed" / name).stat().st_mtime_ns for name in done}
    assert kept == done
    whole, killed = (BoxStore(tmp_path / name) for name in ("whole", "killed"))
    assert killed.keys == whole.keys
    assert killed.skipped.keys() == whole.skipped.keys()
    for a, b in zip(killed, whole, strict=True):
        np.testing.assert_array_equal(a.boxes, b.boxes)
        np.testing.assert_array_equal(a.scores, b.scores)


def test_edge_boxes_are_those_of_a_direct_search(tool, folder, tmp_path) -> None:
    store = extract(tool, folder, tmp_path / "store", "--method", "edge_boxes", "--resize", "150")
    assert store.meta["method"] == "edge_boxes"
    assert store.meta["parameters"]["max_side"] == 150
    assert store.meta["seed"] is None
    assert list(store.skipped) == ["a/broken.jpg"]
    for key in store.keys:
        boxes, scores = EdgeBoxSearch(max_side=150).boxes(read_image(folder / key))
        assert len(boxes)
        np.testing.assert_array_equal(store[key].boxes, boxes)
        np.testing.assert_array_equal(store[key].scores, scores)


def test_a_gpu_changes_nothing(tool, folder, tmp_path, monkeypatch) -> None:
    """Of what the tool does around the search, whose own tests are elsewhere."""
    one = extract(tool, folder, tmp_path / "one", "--mode", "single")
    sizes = []

    def search(images, *, device, **options):
        assert device == "cuda"
        sizes.append(len(images))
        return selective_search(images, **options)

    monkeypatch.setattr(tool.selective_search, "selective_search", search)
    monkeypatch.setattr(tool, "CUDA_BATCH", 3)
    options = ("--mode", "single", "--device", "cuda", "--shard-size", "2")
    two = extract(tool, folder, tmp_path / "two", *options)
    assert sizes == [2, 2]  # of a/1.png, a/2.png, a/broken.jpg; b/1.png, b/2.png
    assert two.keys == one.keys
    assert two.skipped.keys() == one.skipped.keys()
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.boxes, b.boxes)
        np.testing.assert_array_equal(a.scores, b.scores)


@pytest.mark.slow
def test_worker_processes_change_nothing(tool, folder, tmp_path) -> None:
    one = extract(tool, folder, tmp_path / "one", "--mode", "single")
    command = [sys.executable, str(TOOL), "--images", str(folder), "--workers", "2"]
    command += ["--mode", "single", "--output", str(tmp_path / "two")]
    subprocess.run(command, check=True, capture_output=True)
    two = BoxStore(tmp_path / "two")
    assert two.keys == one.keys
    assert two.skipped.keys() == one.skipped.keys()
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.boxes, b.boxes)
        np.testing.assert_array_equal(a.scores, b.scores)


def test_a_bad_sample_can_be_an_error(tool, folder, tmp_path) -> None:
    with pytest.raises(SystemExit, match=r"broken\.jpg"):
        extract(tool, folder, tmp_path / "store", "--on-bad-sample", "error")


@pytest.mark.parametrize(
    "options",
    [
        ("--resize", "0x5"),
        ("--resize", "1x2x3"),
        ("--resize", "-5"),
        ("--resize", "large"),
        ("--workers", "-1"),
        ("--top-k", "-1"),
        ("--seed", "-1"),
        ("--sigma", "0"),
        ("--base-k", "-3"),
        ("--recipe", "none"),
        ("--edge-model", "model.yml"),
        ("--method", "edge_boxes", "--mode", "fast"),
        ("--method", "edge_boxes", "--min-size", "5"),
        ("--method", "edge_boxes", "--seed", "0"),
        ("--method", "edge_boxes", "--resize", "5x5"),
        ("--method", "edge_boxes", "--edge-model", "nothing.yml"),
    ],
)
def test_options_that_are_not_possible(tool, folder, tmp_path, options, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        extract(tool, folder, tmp_path / "store", *options)
    assert caught.value.code == 2
    assert not (tmp_path / "store").exists()
    assert options[0] in capsys.readouterr().err or options[0] in ("--sigma", "--base-k")


def test_bad_sample_error_is_a_value_error() -> None:
    """So that the tool's last resort reports it as one line."""
    assert issubclass(BadSampleError, ValueError)
