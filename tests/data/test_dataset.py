import pickle

import numpy as np
import pytest

from predet.d2 import BoxMode, DatasetCatalog, MetadataCatalog
from predet.data.dataset import DetectionDataset
from predet.data.formats import load_dataset
from predet.data.subset import draw_images


def make_dataset(**changes):
    arguments = {
        "name": "small",
        "root": "/data",
        "class_names": ("cat", "dog"),
        "category_ids": (3, 7),
        "keys": ["a.jpg", "deep/b \u00e9.jpg", "c.jpg", "d.jpg"],
        "image_ids": [5, 2, 9, 4],
        "heights": [10, 20, 0, 40],
        "widths": [11, 21, 0, 41],
        "offsets": [0, 2, 2, 3, 6],
        "boxes": np.arange(6)[:, None] + [[0, 1, 5, 7]],
        "classes": [0, 1, 1, 0, 0, 1],
        "iscrowd": [False, True, False, False, False, True],
    }
    return DetectionDataset(**(arguments | changes))


def assert_same(record, other):
    for first, second in zip(record, other, strict=True):
        np.testing.assert_array_equal(first, second)


def test_record_holds_what_was_put_in():
    record = make_dataset()[3]
    assert record[:5] == ("d.jpg", "/data/d.jpg", 4, 40, 41)
    np.testing.assert_array_equal(record.boxes, [[3, 4, 8, 10], [4, 5, 9, 11], [5, 6, 10, 12]])
    np.testing.assert_array_equal(record.classes, [0, 0, 1])
    np.testing.assert_array_equal(record.iscrowd, [False, False, True])
    assert (record.boxes.dtype, record.classes.dtype) == (np.float32, np.int64)


def test_image_without_boxes_has_empty_arrays_of_the_right_shape():
    record = make_dataset()[1]
    assert record.key == "deep/b \u00e9.jpg"
    assert record.boxes.shape == (0, 4)
    assert record.classes.shape == record.iscrowd.shape == (0,)


def test_areas_are_those_of_the_boxes_unless_given():
    np.testing.assert_array_equal(make_dataset().areas, [30] * 6)
    np.testing.assert_array_equal(make_dataset(areas=range(6)).areas, range(6))


def test_a_record_is_a_copy_and_the_arrays_are_read_only():
    boxes = np.arange(6, dtype=np.float32)[:, None] + np.float32([[0, 1, 5, 7]])
    dataset = make_dataset(boxes=boxes)
    dataset[0].boxes[:] = 99
    assert dataset[0].boxes[0, 2] == 5
    with pytest.raises(ValueError):
        dataset.boxes[0, 0] = 1
    boxes[0, 0] = 0.5  # the caller's own array stays writable


def test_iteration_ends():
    assert [record.image_id for record in make_dataset()] == [5, 2, 9, 4]
    assert make_dataset()[-1].key == "d.jpg"


def test_select_keeps_annotations_with_their_images():
    dataset = make_dataset(areas=[10, 11, 12, 13, 14, 15])
    chosen = dataset.select([3, 1, 0], name="three")
    assert (len(chosen), chosen.name, chosen.class_names) == (3, "three", ("cat", "dog"))
    for position, index in enumerate([3, 1, 0]):
        assert_same(chosen[position], dataset[index])
    np.testing.assert_array_equal(chosen.areas, [13, 14, 15, 10, 11])
    assert len(dataset.select([])) == 0


def test_select_refuses_what_is_not_there_or_twice():
    with pytest.raises(IndexError, match="4 images, no index 4"):
        make_dataset().select([4])
    with pytest.raises(ValueError, match="occurs twice"):
        make_dataset().select([1, 1])


def test_with_annotations_replaces_boxes_and_classes_only():
    other = make_dataset().with_annotations(
        name="pseudo",
        class_names=["thing"],
        category_ids=[1],
        offsets=[0, 0, 1, 1, 1],
        boxes=[[1, 2, 3, 4]],
        classes=[0],
    )
    assert other.keys() == make_dataset().keys()
    assert_same(other[1][5:], (np.float32([[1, 2, 3, 4]]), [0], [False]))
    assert (other[1].image_id, other[1].height) == (2, 20)
    assert len(other[0].boxes) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category_ids": (3,)}, "one category id for each of 2 classes, got 1"),
        ({"image_ids": [5, 2, 9]}, r"image_ids must have shape \(4,\), got \(3,\)"),
        ({"classes": [0]}, r"classes must have shape \(6,\), got \(1,\)"),
        ({"offsets": [0, 2, 1, 3, 6]}, "offsets must rise from 0 to 6"),
        ({"offsets": [0, 2, 2, 3, 5]}, "offsets must rise from 0 to 6"),
        ({"offsets": [1, 2, 2, 3, 6]}, "offsets must rise from 0 to 6"),
        ({"classes": [0, 1, 2, 0, 0, 1]}, r"classes must lie in \[0, 2\), got 0..2"),
        ({"classes": [0, 1, -1, 0, 0, 1]}, r"got -1..1"),
        ({"image_ids": [5, 2, 5, 4]}, "image id 5 occurs twice"),
        ({"image_ids": [5, -2, 9, 4]}, "must not be negative, got -2"),
        ({"keys": ["a.jpg", "b.jpg", "a.jpg", "d.jpg"]}, "key 'a.jpg' occurs twice"),
        ({"boxes": [[0, 0, 1, 1]] * 5 + [[3, 3, 3, 9]]}, r"got \[3.0, 3.0, 3.0, 9.0\]"),
        ({"boxes": [[0, 0, 1, 1]] * 5 + [[3, 3, np.nan, 9]]}, "must be finite"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_dataset(**changes)
    assert "'small'" in str(caught.value)


@pytest.mark.parametrize("shared", [False, True])
def test_pickle_gives_the_same_records(shared):
    dataset = make_dataset()
    if shared:
        dataset.share_memory()
    copy = pickle.loads(pickle.dumps(dataset))
    for record, other in zip(dataset, copy, strict=True):
        assert_same(record, other)
    with pytest.raises(ValueError):
        copy.boxes[0, 0] = 1


def test_a_set_of_the_size_of_coco_is_small():
    n, m = 118_000, 860_000
    dataset = make_dataset(
        keys=[f"train2017/{i:012d}.jpg" for i in range(n)],
        image_ids=range(n),
        heights=np.full(n, 480),
        widths=np.full(n, 640),
        offsets=np.linspace(0, m, n + 1).astype(np.int64),
        boxes=np.tile([[0, 0, 1, 1]], (m, 1)),
        classes=np.zeros(m),
        iscrowd=None,
    )
    assert len(pickle.dumps(dataset)) < 30e6
    assert dataset[n - 1].key == "train2017/000000117999.jpg"


def test_register_gives_detectron2_dicts_and_can_be_read_back():
    dataset = make_dataset()
    dataset.register("small_registered")
    try:
        dicts = DatasetCatalog.get("small_registered")
        assert dicts[0] == {
            "file_name": "/data/a.jpg",
            "image_id": 5,
            "height": 10,
            "width": 11,
            "annotations": [
                {
                    "bbox": [0.0, 1.0, 5.0, 7.0],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": 0,
                    "iscrowd": 0,
                },
                {
                    "bbox": [1.0, 2.0, 6.0, 8.0],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": 1,
                    "iscrowd": 1,
                },
            ],
        }
        assert "height" not in dicts[2]  # unknown, not 0
        metadata = MetadataCatalog.get("small_registered")
        assert metadata.thing_classes == ["cat", "dog"]
        assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}
        with pytest.raises(ValueError, match="registered already"):
            dataset.register("small_registered")
        back = load_dataset("small_registered")
        assert (back.class_names, back.category_ids) == (("cat", "dog"), (3, 7))
        for record, other in zip(dataset, back, strict=True):
            np.testing.assert_array_equal(record.iscrowd, other.iscrowd)
            assert record[:5] == other[:5]
        # Reading cuts boxes at the border of images whose size is known.
        np.testing.assert_array_equal(back[0].boxes, [[0, 1, 5, 7], [1, 2, 6, 8]])
    finally:
        DatasetCatalog.remove("small_registered")
        MetadataCatalog.remove("small_registered")


def test_dicts_of_others_are_read_whatever_their_box_mode_and_ids():
    dicts = [
        {
            "file_name": f"/pictures/{name}/x.jpg",
            "image_id": f"id of {name}",
            "height": 50,
            "width": 60,
            "annotations": [
                {"bbox": [10, 20, 30, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
            ],
        }
        for name in ("p", "q")
    ]
    DatasetCatalog.register("of_others", lambda: dicts)
    MetadataCatalog.get("of_others").thing_classes = ["a", "b"]
    try:
        dataset = load_dataset("of_others")
        assert dataset.keys() == ["p/x.jpg", "q/x.jpg"]
        assert dataset.root == "/pictures"
        assert dataset.image_ids.tolist() == [1, 2]
        np.testing.assert_array_equal(dataset[1].boxes, [[10, 20, 40, 50]])  # cut at height 50
        dicts[1]["annotations"][0]["category_id"] = 2
        with pytest.raises(ValueError, match=r"q/x.jpg: object 1 has category 2"):
            load_dataset("of_others")
    finally:
        DatasetCatalog.remove("of_others")
        MetadataCatalog.remove("of_others")


def make_images(n):
    return DetectionDataset(
        name="images",
        root="/data",
        class_names=(),
        category_ids=(),
        keys=[f"{i}.jpg" for i in range(n)],
        image_ids=range(n),
        heights=np.zeros(n),
        widths=np.zeros(n),
        offsets=np.zeros(n + 1),
        boxes=[],
        classes=[],
    )


def test_draws_of_one_seed_are_nested_and_those_of_two_seeds_differ():
    dataset = make_images(200)
    small = draw_images(dataset, num_images=10, seed=0).image_ids.tolist()
    large = draw_images(dataset, fraction=0.2, seed=0).image_ids.tolist()
    assert (len(small), len(large)) == (10, 40)
    assert set(small) < set(large)
    assert small == sorted(small)
    assert small == draw_images(dataset, num_images=10, seed=0).image_ids.tolist()
    assert small != draw_images(dataset, num_images=10, seed=1).image_ids.tolist()


def test_every_image_is_as_likely_as_the_others():
    counts = np.zeros(10)
    for seed in range(2000):
        counts[draw_images(make_images(10), num_images=3, seed=seed).image_ids] += 1
    # Binomial(2000, 0.3): mean 600, standard deviation 20.5.
    assert (abs(counts - 600) < 90).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either num_images or fraction"),
        ({"num_images": 1, "fraction": 0.5}, "either num_images or fraction"),
        ({"num_images": 0}, r"must lie in \[1, 10\], got 0"),
        ({"num_images": 11}, r"must lie in \[1, 10\], got 11"),
        ({"fraction": 0.0}, r"must lie in \(0, 1\], got 0.0"),
        ({"fraction": 1.5}, r"must lie in \(0, 1\], got 1.5"),
    ],
)
def test_draws_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_images(make_images(10), seed=0, **arguments)
