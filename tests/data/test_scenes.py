import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from predet.data import scenes as scenes_module
from predet.data.formats import load_dataset
from predet.data.images import read_image
from predet.data.scene_objects import SCENE_CLASSES, draw_object
from predet.data.scenes import MIN_VISIBLE, draw_scene, make_scenes

TOOL = Path(__file__).parents[2] / "tools" / "make_scenes.py"


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def scenes(count, seed=0, **options):
    return [draw_scene(np.random.default_rng([seed, i]), **options) for i in range(count)]


def test_same_seed_same_bytes_also_in_another_process(tmp_path):
    make_scenes(tmp_path / "a", num_images=6, seed=7)
    make_scenes(tmp_path / "b", num_images=6, seed=8)
    command = [sys.executable, str(TOOL), str(tmp_path / "c"), "--num-images", "6", "--seed", "7"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert output == f"{tmp_path / 'c' / 'annotations.json'}: 6 images\n"
    first, second, third = (digest(tmp_path / name) for name in "abc")
    assert first == third
    assert len(first) == 7
    assert not set(first.values()) & set(second.values())


def test_more_images_begin_with_those_of_fewer(tmp_path):
    make_scenes(tmp_path / "few", num_images=3, seed=0)
    make_scenes(tmp_path / "many", num_images=5, seed=0)
    few, many = digest(tmp_path / "few"), digest(tmp_path / "many")
    assert all(many[name] == few[name] for name in few if name.endswith(".png"))


def test_written_set_loads_and_agrees_with_pycocotools(tmp_path):
    path = make_scenes(tmp_path, num_images=12, num_classes=10, image_size=(64, 96), seed=1)
    assert path == tmp_path / "annotations.json"
    dataset, oracle = load_dataset(tmp_path), COCO(str(path))
    assert dataset.class_names == tuple(kind.name for kind in SCENE_CLASSES[:10])
    assert dataset.category_ids == tuple(range(1, 11))
    assert dataset.keys() == [f"images/{number:06d}.png" for number in range(1, 13)]
    assert len(dataset.boxes) == len(oracle.anns)
    for record in dataset:
        assert read_image(record.path).shape == (record.height, record.width, 3) == (64, 96, 3)
        found = oracle.loadAnns(oracle.getAnnIds(record.image_id))
        assert [entry["category_id"] - 1 for entry in found] == record.classes.tolist()
    np.testing.assert_array_equal(dataset.areas, [entry["area"] for entry in oracle.anns.values()])


def test_splits_of_one_seed_share_no_image(tmp_path):
    command = [sys.executable, str(TOOL), str(tmp_path), "--split", "train=4", "--split", "val=3"]
    subprocess.run(command, check=True, capture_output=True)
    make_scenes(tmp_path, num_images=2, seed=0, split="val", prefix="extra_")
    train, val = (load_dataset(tmp_path, split=split) for split in ("train", "val"))
    assert (len(train), val.keys()) == (4, ["val/extra_000001.png", "val/extra_000002.png"])
    assert train.class_names == val.class_names
    images = [name for name in digest(tmp_path) if name.endswith(".png")]
    assert len(images) == len({digest(tmp_path)[name] for name in images}) == 9


def test_every_object_lies_whole_on_its_patch():
    for index, kind in enumerate(SCENE_CLASSES):
        patch = draw_object(kind, 20.0, np.random.default_rng(index))
        solid = patch.alpha > 0.5
        assert not solid[[0, -1]].any()
        assert not solid[:, [0, -1]].any()
        rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
        extent = max(np.ptp(rows), np.ptp(columns))
        assert 26 < extent < 60, kind.name  # about two radii, stretched by up to a quarter
        assert 150 < solid.sum() < 1700, kind.name


def test_boxes_are_tight_around_what_differs_from_the_background():
    tight = []
    for seed in range(60):
        scene = draw_scene(np.random.default_rng(seed), max_objects=1, clutter=0)
        background = scenes_module._draw_background(np.random.default_rng(seed), 128, 128)
        changed = np.abs(scene.image - background.clip(0, 255)).max(axis=2) > 16  # noise: 7
        if not len(scene.boxes):
            continue
        left, top, right, bottom = scene.boxes[0].astype(int)
        outside = changed.copy()
        outside[max(top - 3, 0) : bottom + 3, max(left - 3, 0) : right + 3] = False  # faint tips
        assert not outside.any()
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        tight.append(np.abs(scene.boxes[0] - found).max() <= 1)
    assert len(tight) > 40
    assert np.mean(tight) > 0.8  # elsewhere an edge of the object has the background's colour


def test_covered_objects_are_not_labelled():
    total, labelled, small = 0, 0, 0
    for seed in range(300):
        rng = np.random.default_rng([5, seed])
        scene = draw_scene(rng, height=64, width=64, num_classes=3, max_objects=25)
        labelled += len(scene.boxes)
        total += 13  # expected number of objects drawn
        small += (scene.areas < 4).sum()
    assert 0.5 < labelled / total < 0.95
    assert small < 0.01 * labelled
    assert 0.2 < MIN_VISIBLE < 0.6


def test_sizes_classes_and_counts_spread():
    drawn = scenes(400, num_classes=6)
    boxes = np.concatenate([scene.boxes for scene in drawn])
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    low, high = np.quantile(sides, [0.05, 0.95])
    assert low < 15
    assert high > 48
    classes = np.bincount(np.concatenate([scene.classes for scene in drawn]), minlength=6)
    assert classes.min() > 0.75 * classes.mean()
    counts = np.bincount([len(scene.boxes) for scene in drawn])
    assert len(counts) == 7
    assert counts[1:].min() > 20


def test_backgrounds_hold_clutter_and_differ():
    plain, cluttered = (scenes(30, clutter=clutter, max_objects=1) for clutter in (0.0, 3.0))

    def edges(scene):
        return cv2.Canny(scene.image, 100, 200).mean()

    assert np.mean([edges(s) for s in cluttered]) > 2 * np.mean([edges(s) for s in plain])
    assert np.std([scene.image.mean() for scene in plain]) > 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, r"num_classes must lie in \[1, 12\], got 0"),
        ({"num_classes": 13}, r"num_classes must lie in \[1, 12\], got 13"),
        ({"image_size": 16}, "32 pixels or more a side, got 16x16"),
        ({"num_images": 0}, "num_images must be 1 or more, got 0"),
        ({"max_objects": 0}, "max_objects >= 1"),
        ({"clutter": -1.0}, "clutter >= 0"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_scenes(tmp_path, **({"num_images": 1, "seed": 0} | options))
    assert not list(tmp_path.iterdir())


def test_tool_says_what_is_wrong(tmp_path):
    for extra in (["--split", "train"], ["--num-images", "2", "--num-classes", "99"]):
        command = [sys.executable, str(TOOL), str(tmp_path), *extra]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 2
        assert "expected NAME=COUNT" in result.stderr or "num_classes" in result.stderr


def test_annotations_are_written_last(tmp_path):
    path = make_scenes(tmp_path, num_images=2, seed=0)
    content = json.loads(path.read_text())
    assert all((tmp_path / image["file_name"]).is_file() for image in content["images"])
    assert not list(tmp_path.glob("*.partial"))


def test_scenes_are_fast_enough_to_make_on_the_spot(tmp_path):
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    best = min(timed(lambda: make_scenes(tmp_path, num_images=20, seed=0)) for _ in range(3))
    cv2.setNumThreads(threads)
    assert 20 / best > 50  # more than 200 a second on an idle core


def timed(work):
    start = time.process_time()  # not the time that other processes take
    work()
    return time.process_time() - start
