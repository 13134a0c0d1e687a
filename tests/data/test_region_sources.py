"""Selective Search as a box source, online and out of a store, and what a store must fit."""

from __future__ import annotations

import copy
import json
import pickle

import cv2
import numpy as np
import pytest
from omegaconf import OmegaConf
from torch import nn

from predet.data.augmentation import Compose
from predet.data.box_picks import ImportanceSampling, RandomK, TopK
from predet.data.box_sources import SelectiveSearchRegions
from predet.data.box_store import BoxRow, BoxStore
from predet.data.box_store_writer import BoxStoreWriter, StoreInfo
from predet.data.formats import load_dataset
from predet.data.images import BadSampleError, read_image
from predet.data.loader import build_train_loader
from predet.data.pretext_mapper import PretextMapper
from predet.data.region_search import RegionSearch
from predet.data.sources import without_annotations
from predet.data.stored_boxes import RegionsOfOtherImages, StoredBoxes, StoredRegions
from predet.data.two_views import TwoViewMapper
from predet.engine import train_net
from predet.engine.provenance import check_same_run, run_identity
from predet.ops.selective_search import rank, selective_search, to_rows

SMALL = {"mode": "single", "resize": "64x48", "min_size": 20}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def photos(tmp_path):
    """Four images of soft noise; the third is one colour, so it has one region."""
    root = tmp_path / "photos"
    for seed, name in enumerate(("a/0.png", "a/1.png", "b/0.png", "b/1.png")):
        noise = rng(seed).integers(0, 256, (60 + 10 * seed, 90, 3), np.uint8)
        soft = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / name), soft if seed != 2 else np.full_like(soft, 77))
    return without_annotations(load_dataset(root))


def make_store(dataset, path, search=None, *, rows=None, info=None, skipped=None) -> BoxStore:
    """A store as tools/extract_proposals.py makes it, or of the rows given."""
    search = search or RegionSearch(**SMALL)
    if rows is None:
        rows = []
        for record in (dataset[i] for i in range(len(dataset))):
            if record.key in (skipped or {}):
                continue
            image = read_image(record.path)
            regions = search.regions(image, name=record.key)
            boxes, scores = to_rows(regions, rank(regions, 0))
            rows.append(
                BoxRow(record.key, *image.shape[:2], boxes, scores, np.zeros(len(boxes), int))
            )
    if info is None:
        info = StoreInfo(method=search.method, parameters=search.parameters)
    keys = [row.key for row in rows] + list(skipped or {})
    writer = BoxStoreWriter(path, info=info, keys=keys)
    writer.write_shard(0, rows, skipped=skipped)
    return writer.finish()


def loader_of(dataset, source, **options):
    mapper = PretextMapper(augmentation=Compose(steps=[]), boxes=source)
    return build_train_loader(
        dataset=dataset,
        mapper=mapper,
        **{"total_batch_size": 4, "num_workers": 0, "seed": 1} | options,
    )


def test_the_default_search_is_detregs():
    """Against OpenCV used as DETReg uses it."""
    rgb = rng().integers(0, 256, (90, 140, 3), np.uint8)
    rgb = cv2.GaussianBlur(rgb, (0, 0), 4)
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(cv2.resize(rgb, (128, 128)))
    search.switchToSelectiveSearchFast()
    expected = search.process().astype(np.float32)
    expected[:, 2:] += expected[:, :2]
    expected *= np.float32([140 / 128, 90 / 128] * 2)
    found = RegionSearch().regions(rgb, name="it").boxes
    assert set(map(tuple, found.tolist())) == set(map(tuple, expected.tolist()))


@pytest.mark.parametrize("pick", [TopK(10), RandomK(10), ImportanceSampling(10)])
def test_a_store_gives_what_a_search_gives(photos, tmp_path, pick):
    """To the bit, for every generator; and every generator another draw."""
    search = RegionSearch(**SMALL)
    online = SelectiveSearchRegions(search=search, pick=pick)
    stored = StoredRegions(store=make_store(photos, tmp_path / "s"), pick=pick, search=search)
    online, stored = pickle.loads(pickle.dumps((online, stored)))
    record = photos[0]
    image = read_image(record.path)
    draws = []
    for seed in range(5):
        boxes, classes = online(image, record, rng(seed))
        again, _ = stored(image, record, rng(seed))
        np.testing.assert_array_equal(boxes, again)
        assert boxes.shape == (10, 4)
        assert (boxes.dtype, classes.dtype) == (np.float32, np.int64)
        assert not classes.any()
        draws.append(frozenset(map(tuple, boxes.tolist())))
    assert len(set(draws)) > 1


def test_regions_are_ranked_as_opencv_ranks_them(photos):
    """Each region leads as often as random x level makes it lead."""
    record, search = photos[1], RegionSearch(**SMALL)
    image = read_image(record.path)
    source = SelectiveSearchRegions(search=search, pick=TopK(1))
    found = selective_search(
        search.resized(image, name="it"), settings=search.settings, channel_order="bgr"
    )
    scale = np.float32([image.shape[1] / 64, image.shape[0] / 48] * 2)
    index = {tuple(box): i for i, box in enumerate((found.boxes * scale).tolist())}
    draws = 800
    led = np.zeros(len(index))
    for seed in range(draws):
        led[index[tuple(source(image, record, rng(seed))[0][0].tolist())]] += 1
    random = rng(99).random((20_000, len(found.all_levels))) * found.all_levels
    first = np.minimum.reduceat(random, found.first[:-1], axis=1).argmin(axis=1)
    expected = np.bincount(first, minlength=len(index)) / 20_000
    assert abs(led / draws - expected).max() < 5 * np.sqrt(expected.max() / draws)
    low = found.levels == found.levels.min()
    assert led[low].sum() / draws == pytest.approx(expected[low].sum(), abs=0.08)


def test_batches_resume_and_do_not_depend_on_workers(photos, tmp_path):
    source = StoredRegions(store=make_store(photos, tmp_path / "s"), pick=TopK(5))
    found = []
    for workers, start in ((0, 0), (2, 0), (0, 1)):
        stream = loader_of(photos, source, num_workers=workers).batches(start)
        found.append([next(stream) for _ in range(3 - start)])
        stream.close()

    def boxes(batches):
        return [item["instances"].gt_boxes.tensor.tolist() for batch in batches for item in batch]

    assert boxes(found[0]) == boxes(found[1])
    assert boxes(found[0])[4:] == boxes(found[2])
    by_key = {item["key"]: item["instances"].gt_boxes.tensor for item in found[0][0]}
    later = {item["key"]: item["instances"].gt_boxes.tensor for item in found[0][1]}
    assert not by_key["a/0.png"].equal(later["a/0.png"])  # the order is drawn anew in each epoch


def test_images_with_fewer_boxes_are_counted_and_reported(photos, tmp_path, caplog):
    store = make_store(photos, tmp_path / "s")
    caplog.clear()
    loader = loader_of(photos, StoredRegions(store=store, pick=TopK(5)))
    assert "1 of the 4 images of photos have fewer than 5 boxes, 0 of them none" in caplog.text
    assert "the first is 'b/0.png' with 1" in caplog.text
    stream = loader.batches(0)
    batches = [next(stream) for _ in range(3)]
    stream.close()
    assert {item["key"]: item["boxes_missing"] for item in batches[0]} == {
        "a/0.png": 0,
        "a/1.png": 0,
        "b/0.png": 4,
        "b/1.png": 0,
    }
    missing = loader.missing_boxes()
    assert (missing.samples, missing.short, missing.boxes, missing.first) == (12, 3, 12, "b/0.png")
    assert missing.summary().startswith("3 of 12 samples had fewer boxes than asked for, 12 boxes")
    assert caplog.text.count("b/0.png has 4 boxes fewer than asked for") == 1
    caplog.clear()
    train_net._report_bad_samples(loader)  # at the end of a run
    assert "training data, process 0: 3 of 12 samples had fewer boxes" in caplog.text


def test_a_store_of_another_search_is_refused(photos, tmp_path):
    store = make_store(photos, tmp_path / "s")
    wanted = RegionSearch(**{**SMALL, "resize": "128x128"}, channel_order="rgb")
    with pytest.raises(ValueError, match="made in another way than the config says") as caught:
        StoredRegions(store=store, pick=TopK(5), search=wanted)
    assert "resize: expected '128x128', got '64x48'" in str(caught.value)
    assert "channel_order: expected 'rgb', got 'bgr'" in str(caught.value)
    assert "sigma" not in str(caught.value)
    with pytest.raises(ValueError, match="method: expected 'selective_search-fast', got 'sel"):
        StoredRegions(store=store, pick=TopK(5), search=RegionSearch(**{**SMALL, "mode": "fast"}))


def test_a_store_that_lacks_an_image_is_refused(photos, tmp_path):
    store = make_store(photos.select([0, 1, 3]), tmp_path / "s")
    with pytest.raises(ValueError, match=r"lacks 1 of the 4 images of photos.*'b/0\.png'"):
        loader_of(photos, StoredRegions(store=store, pick=TopK(5)))


def test_an_image_skipped_by_the_store_is_a_bad_sample(photos, tmp_path, caplog):
    store = make_store(photos, tmp_path / "s", skipped={"b/0.png": "was damaged"})
    loader = loader_of(photos, StoredRegions(store=store, pick=TopK(5)))
    assert "1 images are left out" in caplog.text
    stream = loader.batches(0)
    assert all(item["key"] != "b/0.png" for item in next(stream))
    stream.close()
    assert "does not hold it" in loader.bad_samples().reasons["b/0.png"]


@pytest.mark.parametrize("known", [True, False])
def test_a_store_of_other_images_is_refused(photos, tmp_path, known):
    """Of another size, whether the data set tells the sizes or only the files do."""
    store = make_store(photos, tmp_path / "s")
    for index in range(4):
        cv2.imwrite(photos[index].path, np.zeros((33, 44, 3), np.uint8))
    if known:
        photos = with_sizes(photos, 33, 44)
    with pytest.raises(ValueError, match=r"made from other images.*'a/0\.png': 60 x 90 .* 33 x 44"):
        loader_of(photos, StoredRegions(store=store, pick=TopK(5)))


def with_sizes(dataset, height: int, width: int):
    copy = pickle.loads(pickle.dumps(dataset))
    copy.heights = np.full(len(dataset), height, np.int32)
    copy.widths = np.full(len(dataset), width, np.int32)
    return copy


def test_an_image_that_changed_later_is_a_bad_sample(photos, tmp_path):
    source = StoredRegions(store=make_store(photos, tmp_path / "s"), pick=TopK(5))
    with pytest.raises(BadSampleError, match=r"0\.png.* of 90x60 pixels, the file has 44x33"):
        source(np.zeros((33, 44, 3), np.uint8), photos[0], rng())


def test_a_store_of_an_older_format_is_refused(photos, tmp_path):
    path = make_store(photos, tmp_path / "s").path
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, "format": 0}))
    with pytest.raises(ValueError, match="has format 0, this version of predet reads format 1"):
        StoredRegions(store=path, pick=TopK(5))


def test_a_store_without_levels_is_refused(photos, tmp_path):
    whole = make_store(photos, tmp_path / "whole")
    rows = list(whole)
    bare = make_store(photos, tmp_path / "bare", rows=rows)
    with pytest.raises(ValueError, match="'selective_search-single', holds no levels"):
        StoredRegions(store=bare, pick=TopK(5))
    loader_of(photos, StoredBoxes(store=bare, pick=TopK(1)))  # its one order will do
    partly = make_store(photos, tmp_path / "partly", rows=[whole.with_levels("a/0.png"), *rows[1:]])
    with pytest.raises(ValueError, match=r"holds no levels of Selective Search.*'a/1\.png'"):
        loader_of(photos, StoredRegions(store=partly, pick=TopK(5)))


def other_rows(dataset) -> list[BoxRow]:
    rows = []
    for index in range(len(dataset)):
        height, width = read_image(dataset[index].path).shape[:2]
        boxes = np.float32([[0, 0, 9, 9], [5, 5, 5, 20], [1, 2, 30, 40], [3, 3, 8, 8]])
        scores, classes = np.float32([0.1, 0.8, 0.9, 0.5]), np.array([0, 1, 1, 0])
        rows.append(BoxRow(dataset.key(index), height, width, boxes, scores, classes))
    return rows


def test_boxes_of_any_store_are_taken_by_score(photos, tmp_path):
    info = StoreInfo(method="maskcut", parameters={"tau": 0.15}, class_names=("a", "b"))
    store = make_store(photos, tmp_path / "s", rows=other_rows(photos), info=info)
    record = photos[0]
    image = read_image(record.path)
    boxes, classes = StoredBoxes(store=store, pick=TopK(2), parameters={"tau": 0.15})(
        image, record, rng()
    )
    assert boxes.tolist() == [[1, 2, 30, 40], [3, 3, 8, 8]]  # the one without area is left out
    assert classes.tolist() == [1, 0]
    loader_of(photos, StoredBoxes(store=store, pick=TopK(2), method="maskcut"))
    with pytest.raises(ValueError, match=r"tau: expected 0\.2, got 0\.15"):
        StoredBoxes(store=store, pick=TopK(2), parameters={"tau": 0.2})
    with pytest.raises(ValueError, match="made by 'maskcut', holds no levels"):
        StoredRegions(store=store, pick=TopK(2))


def test_the_control_takes_regions_of_other_images(photos, tmp_path):
    """Scaled to the image; never its own, all others alike often."""
    store = make_store(photos, tmp_path / "s")
    source = pickle.loads(pickle.dumps(RegionsOfOtherImages(store=store, pick=TopK(1))))
    record = photos[0]
    image = read_image(record.path)
    found_in = {}
    for row in store:
        scale = np.float32([image.shape[1] / row.width, image.shape[0] / row.height] * 2)
        for box in (row.boxes * scale).tolist():
            found_in.setdefault(tuple(box), set()).add(row.key)
    taken = []
    for seed in range(300):
        (box,), classes = source(image, record, rng(seed))
        np.testing.assert_array_equal(box, source(image, record, rng(seed))[0][0])
        taken.append(found_in[tuple(box.tolist())])
        assert classes.tolist() == [0]
    for key in ("a/1.png", "b/0.png", "b/1.png"):
        assert sum(key in keys for keys in taken) > 60  # of 100 expected; some boxes are in several
    assert sum(keys == {"a/0.png"} for keys in taken) == 0
    alone = make_store(photos.select([0]), tmp_path / "alone")
    with pytest.raises(ValueError, match="holds no other image"):
        loader_of(photos.select([0]), RegionsOfOtherImages(store=alone, pick=TopK(1)))


@pytest.mark.parametrize("kind", [PretextMapper, TwoViewMapper])
def test_a_run_goes_on_with_the_same_store_only(photos, tmp_path, kind):
    """Wherever it lies."""
    cfg = OmegaConf.create({"train": {"device": "cpu"}})

    def identity(path, **options):
        search = RegionSearch(**{**SMALL, **options})
        source = StoredRegions(store=make_store(photos, path, search), pick=TopK(5))
        mapper = kind(augmentation=Compose(steps=[]), boxes=source)
        return run_identity(cfg, photos, None, mapper)

    state = {**identity(tmp_path / "a"), "step": 1, "optimizer": {}}
    check_same_run(state, identity(tmp_path / "b"), "here")
    with pytest.raises(
        ValueError, match=r"(?s)cannot resume from here.*boxes: .*selective_search-s"
    ):
        check_same_run(state, identity(tmp_path / "c", resize="50x50"), "here")


def test_a_run_goes_on_with_the_same_image_ids_only(photos):
    """Augmentation is drawn from them. Checkpoints that do not tell them go on."""
    cfg = OmegaConf.create({"train": {"device": "cpu"}})
    state = {**run_identity(cfg, photos), "step": 1, "optimizer": {}}
    other = copy.copy(photos)
    other.image_ids = photos.image_ids + 1
    with pytest.raises(ValueError, match="the same images and boxes, with other image ids"):
        check_same_run(state, run_identity(cfg, other), "here")
    del state["provenance"]["dataset"]["image_ids"]
    check_same_run(state, run_identity(cfg, other), "here")


def test_the_device_is_the_one_that_was_used(photos):
    """Not the one that was asked for: without a GPU "cuda" is the CPU."""
    cfg = OmegaConf.create({"train": {"device": "cuda"}})
    assert run_identity(cfg, photos, nn.Linear(1, 1))["provenance"]["device"] == "cpu"


def test_ranked_stores_and_stores_with_levels_are_told_apart(photos, tmp_path):
    with pytest.raises(ValueError, match=r"'selective_search-single'.*use StoredRegions"):
        StoredBoxes(store=make_store(photos, tmp_path / "s"), pick=TopK(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": "0x5"}, "resize takes .* got '0x5'"),
        ({"resize": "large"}, "resize takes .* got 'large'"),
        ({"mode": "slow"}, "mode must be .* got 'slow'"),
        ({"channel_order": "gbr"}, "channel_order must be .* got 'gbr'"),
        ({"sigma": 0}, "sigma must be above 0"),
        ({"min_size": -1}, "min_size must be"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        RegionSearch(**options)


def test_an_image_too_large_to_search_is_a_bad_sample(monkeypatch):
    monkeypatch.setattr("predet.ops.selective_search.MAX_SIDE", 50)
    with pytest.raises(BadSampleError, match=r"big\.png: images must have"):
        RegionSearch(resize="off").regions(np.zeros((20, 60, 3), np.uint8), name="big.png")
