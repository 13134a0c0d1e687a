"""Several data sets as one, drawn by weight."""

import logging
import pickle
from collections import Counter

import numpy as np
import pytest
from omegaconf import OmegaConf

from predet.d2 import LazyCall as L
from predet.d2 import instantiate
from predet.data.box_store import BoxRow
from predet.data.box_store_writer import BoxStoreWriter, StoreInfo
from predet.data.dataset import DetectionDataset
from predet.data.formats import load_dataset
from predet.data.loader import build_test_loader, build_train_loader
from predet.data.mixing import mix_datasets, train_stream
from predet.data.pseudo_labels import pseudo_labelled
from predet.data.sampling import ImageStream, MixedStream
from predet.data.sources import load_images
from predet.data.subset import draw_images


def make_dataset(name, num_images, *, class_names=("cat", "dog"), first_id=1):
    """Image i has one box of class i modulo the number of classes, at x = i."""
    boxes = np.arange(num_images)[:, None] + np.float32([0, 0, 5, 5])
    labelled = bool(class_names)
    return DetectionDataset(
        name=name,
        root=f"/data/{name}",
        class_names=class_names,
        category_ids=range(10, 10 + len(class_names)),
        keys=[f"{number}.jpg" for number in range(num_images)],
        image_ids=range(first_id, first_id + num_images),
        heights=[40] * num_images,
        widths=[50] * num_images,
        offsets=range(num_images + 1) if labelled else [0] * (num_images + 1),
        boxes=boxes if labelled else [],
        classes=np.arange(num_images) % max(1, len(class_names)) if labelled else [],
        areas=np.arange(num_images) if labelled else [],
    )


def record_key(record, rng):
    """A mapper that reads no file."""
    return {"key": record.key, "path": record.path, "draw": rng.random()}


def loader(dataset, **options):
    defaults = {"total_batch_size": 8, "num_workers": 0, "seed": 3}
    return build_train_loader(dataset=dataset, mapper=record_key, **(defaults | options))


def read(batches, steps):
    return [next(batches) for _ in range(steps)]


def test_annotations_and_paths_are_those_of_the_sources():
    first, second = make_dataset("a", 3), make_dataset("b", 4)
    mixed = mix_datasets(datasets=[first, second])
    assert (len(mixed), mixed.name, mixed.root) == (7, "a + b", "/data")
    assert (mixed.class_names, mixed.category_ids) == (("cat", "dog"), (10, 11))
    assert mixed.image_ids.tolist() == [1, 2, 3, 4, 5, 6, 7]
    for index, source in enumerate([*first, *second]):
        record = mixed[index]
        assert record.path == source.path
        assert record.key == f"{'a' if index < 3 else 'b'}/{source.key}"
        for one, other in zip(record[3:], source[3:], strict=True):
            np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(mixed.areas, [0, 1, 2, 0, 1, 2, 3])


def test_parts_copies_and_pickles_of_a_mixture_know_their_sources():
    mixed = mix_datasets(datasets=[make_dataset("a", 3), make_dataset("b", 4)], weights=[1, 2])
    part = mixed.select([5, 0])
    assert [record.path for record in part] == ["/data/b/2.jpg", "/data/a/0.jpg"]
    other = part.with_annotations(
        name="x", class_names=[], category_ids=[], offsets=[0, 0, 0], boxes=[], classes=[]
    )
    shared = mix_datasets(datasets=[make_dataset("a", 3), make_dataset("b", 4)], weights=[1, 2])
    shared.share_memory()
    for dataset in (other, part, pickle.loads(pickle.dumps(mixed)), shared):
        assert dataset.sources == mixed.sources
    assert draw_images(mixed, num_images=7, seed=0).sources.weights == {"a": 1, "b": 2}


def test_without_weights_images_are_equal_and_read_as_one_data_set():
    mixed = mix_datasets(datasets=[make_dataset("a", 3), make_dataset("b", 5)])
    stream, plain = train_stream(mixed, seed=4), ImageStream(num_images=8, seed=4)
    assert [stream[i] for i in range(40)] == [plain[i] for i in range(40)]
    (batch,) = read(loader(mixed).batches(0), 1)
    assert len({sample["key"] for sample in batch}) == 8


def test_shares_are_the_weights_in_every_block():
    sizes, weights = (300, 900, 800), (5, 4, 1)
    groups = np.split(np.arange(2000), np.cumsum(sizes)[:-1])
    stream = MixedStream(groups=groups, weights=weights, seed=0)
    assert stream.block == 2000
    for block in range(3):
        indices = [stream[block * 2000 + i][1] for i in range(2000)]
        found = Counter(np.searchsorted([300, 1200], indices, side="right").tolist())
        assert found == {0: 1000, 1: 800, 2: 200}
    # Shuffled, not one source after the other: a hundred images hold the shares, roughly.
    head = np.searchsorted([300, 1200], [stream[i][1] for i in range(100)], side="right")
    assert 35 <= (head == 0).sum() <= 65
    assert 25 <= (head == 1).sum() <= 55


def test_each_source_is_gone_through_in_epochs_of_its_own():
    groups = [np.arange(7), np.arange(7, 57)]
    stream = MixedStream(groups=groups, weights=[1, 1], seed=1)
    seen = [stream[position] for position in range(3 * stream.block)]
    for group in groups:
        own = [(epoch, index) for epoch, index in seen if index in group]
        assert len(own) == len(seen) / 2
        for start in range(0, len(own) - len(group), len(group)):
            turn = own[start : start + len(group)]
            assert {epoch for epoch, _ in turn} == {start // len(group)}
            assert sorted(index for _, index in turn) == group.tolist()
    assert len(set(seen)) == len(seen)  # never the same crops twice


def test_the_stream_is_a_function_of_seed_and_position():
    def make(seed):
        groups = [np.arange(30), np.arange(30, 130)]
        return MixedStream(groups=groups, weights=[2, 1], seed=seed)

    whole = [make(5)[position] for position in range(0, 4000, 7)]
    stream = make(5)
    backwards = [stream[position] for position in reversed(range(0, 4000, 7))]
    assert backwards[::-1] == whole
    other = [make(6)[position] for position in range(0, 4000, 7)]
    assert other != whole
    assert [index < 30 for _, index in other] != [index < 30 for _, index in whole]


def test_rare_sources_are_not_forgotten():
    groups = [np.arange(5), np.arange(5, 9), np.arange(9, 1005)]
    stream = MixedStream(groups=groups, weights=[1e-9, 1e-9, 1], seed=0)
    assert stream.shares.tolist() == [1, 1, 1003]
    found = [stream[position][1] for position in range(5 * stream.block)]
    assert sorted(index for index in found if index < 5) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_depend_on_seed_and_step_only(num_workers):
    mixed = mix_datasets(datasets=[make_dataset("a", 3), make_dataset("b", 40)], weights=[1, 3])
    expected = read(loader(mixed).batches(0), 130)
    batches = loader(mixed, num_workers=num_workers).batches(120)
    assert read(batches, 10) == expected[120:]
    batches.close()
    keys = [sample["key"] for batch in expected for sample in batch]
    share = sum(key.startswith("a/") for key in keys) / len(keys)
    assert share == pytest.approx(0.25, abs=0.03)


def test_evaluation_takes_each_image_once():
    mixed = mix_datasets(datasets=[make_dataset("a", 3), make_dataset("b", 4)], weights=[9, 1])
    batches = build_test_loader(dataset=mixed, mapper=record_key)
    keys = [sample["key"] for batch in batches for sample in batch]
    assert keys == [mixed.key(index) for index in range(7)]


def test_classes_are_joined_by_name(caplog):
    caplog.set_level(logging.INFO)
    first = make_dataset("a", 2)
    second = make_dataset("b", 3, class_names=("emu", "cat", "fox"))
    with pytest.raises(
        ValueError,
        match=r"'a' and 'b' have different classes: 2 and 3, \['dog'\] only here, \['emu', 'fox'\]",
    ):
        mix_datasets(datasets=[first, second])
    mixed = mix_datasets(datasets=[first, second], classes="by_name")
    assert mixed.class_names == ("cat", "dog", "emu", "fox")
    assert mixed.category_ids == (1, 2, 3, 4)
    assert mixed.classes.tolist() == [0, 1, 2, 0, 3]
    assert "source 'b': classes by name: 0 'emu' -> 2, 1 'cat' -> 0, 2 'fox' -> 3" in caplog.text
    assert "source 'b': no boxes of ['dog']: where its images show them" in caplog.text
    turned = make_dataset("c", 2, class_names=("dog", "cat"))
    with pytest.raises(ValueError, match="the same names in another order"):
        mix_datasets(datasets=[first, turned])
    assert mix_datasets(datasets=[first, turned], classes="by_name").classes.tolist() == [
        0,
        1,
        1,
        0,
    ]


def test_unlabelled_sources_go_with_any(caplog):
    parts = [make_dataset("a", 2, class_names=()), make_dataset("b", 3)]
    mixed = mix_datasets(datasets=parts, weights=[1, 1])
    assert (mixed.class_names, np.diff(mixed.offsets).tolist()) == (("cat", "dog"), [0, 0, 1, 1, 1])
    assert "no boxes in ['a']" in caplog.text
    assert mix_datasets(datasets=parts[:1] * 2).keys() == [
        *("a/0.jpg", "a/1.jpg", "a (2)/0.jpg", "a (2)/1.jpg")
    ]


def test_pseudo_labelled_image_folders(tmp_path, write_image):
    """Two folders with equal keys, each with a store of its own."""
    parts = []
    for number, name in enumerate(("first", "second")):
        write_image(tmp_path / name / "x.png", seed=number)
        dataset = load_dataset(tmp_path / name)
        info = StoreInfo(method="test", class_names=("cell",), image_root=str(tmp_path / name))
        writer = BoxStoreWriter(tmp_path / f"store_{name}", info=info, keys=["x.png"])
        box, score = np.float32([[number, 2, 10, 12]]), np.ones(1, np.float32)
        writer.write_shard(0, [BoxRow("x.png", 24, 32, box, score, np.zeros(1, np.int64))])
        parts.append(pseudo_labelled(dataset, store=writer.finish()))
    mixed = mix_datasets(datasets=parts, weights=[1, 3])
    assert mixed.keys() == ["first, test boxes/x.png", "second, test boxes/x.png"]
    assert [record.path for record in mixed] == [
        str(tmp_path / name / "x.png") for name in ("first", "second")
    ]
    assert mixed.boxes.tolist() == [[0, 2, 10, 12], [1, 2, 10, 12]]
    assert (mixed[0].height, mixed.class_names) == (24, ("cell",))


def test_a_config_can_mix(image_folder, voc_root):
    cfg = L(mix_datasets)(
        datasets=[
            L(load_images)(source=str(voc_root), split="train"),
            L(load_images)(source=str(image_folder), num_images=4),
        ],
        weights=[3, 1],
        names=["labelled", "other"],
    )
    mixed = instantiate(OmegaConf.create({"dataset": cfg}).dataset)
    assert (len(mixed), mixed.sources.weights) == (6, {"labelled": 3.0, "other": 1.0})
    assert mixed[0].path == str(voc_root / "JPEGImages" / "two.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"datasets": []}, "needs at least one data set, got none"),
        ({"weights": [1]}, r"one weight for each of 2 data sets, got \[1\]"),
        ({"weights": [1, 0]}, r"weights must be positive numbers, got \[1, 0\]"),
        ({"weights": [1, float("nan")]}, "weights must be positive numbers"),
        ({"names": ["x", "x"]}, "names must be different, one for each of 2 data sets"),
        ({"names": ["x/y", "z"]}, "must not be empty or hold '/', got 'x/y'"),
        ({"classes": "merge"}, "classes must be 'equal' or 'by_name', got 'merge'"),
    ],
)
def test_faulty_arguments_are_refused(options, message):
    datasets = [make_dataset("a", 2), make_dataset("b", 3)]
    with pytest.raises(ValueError, match=message):
        mix_datasets(**({"datasets": datasets} | options))


def test_mixtures_of_mixtures_and_sources_without_images_are_refused():
    mixed = mix_datasets(datasets=[make_dataset("a", 2), make_dataset("b", 3)], weights=[1, 1])
    with pytest.raises(ValueError, match=r"'a \+ b' is a mixture itself"):
        mix_datasets(datasets=[mixed])
    with pytest.raises(ValueError, match="source 'b' has weight 1, but none of its images is left"):
        loader(mixed.select([0, 1]))
