"""DETReg's cache of boxes becomes a store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from predet.data.box_store_npy import import_npy
from predet.data.formats import load_dataset


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Boxes of seven of the eight images, in the order of the search."""
    folder = tmp_path / "ss_box_cache"
    folder.mkdir()
    for number in range(7):
        boxes = [[number, 1, 20, 22], [0, 0, 32, 24], [2, 2, 9.5, 9]]
        np.save(folder / f"{number}.npy", np.array(boxes, np.float32))
    return folder


def test_boxes_keep_their_order(image_folder, cache, tmp_path):
    dataset = load_dataset(image_folder)  # whose sizes are not known
    store = import_npy(cache, tmp_path / "store", dataset=dataset, method="detreg-cache")
    assert store.meta["method"] == "detreg-cache"
    row = store["first/3.png"]
    assert (row.height, row.width) == (24, 32)
    assert row.boxes.tolist() == [[3, 1, 20, 22], [0, 0, 32, 24], [2, 2, 9.5, 9]]
    np.testing.assert_allclose(row.scores, [1, 2 / 3, 1 / 3], atol=1e-6)
    assert store.skipped == {"second/7.png": "there is no file 7.npy"}
    assert store.meta["counts"]["images"] == 7


def test_a_finished_store_is_not_made_anew_and_says_so(image_folder, cache, tmp_path, caplog):
    dataset = load_dataset(image_folder)
    import_npy(cache, tmp_path / "store", dataset=dataset)
    assert "is finished" not in caplog.text
    np.save(cache / "0.npy", np.zeros((0, 4), np.float32))
    assert len(import_npy(cache, tmp_path / "store", dataset=dataset)["first/0.png"].boxes) == 3
    assert "store is finished: the files in" in caplog.text


def test_unusable_boxes_are_left_out_and_counted(image_folder, cache, tmp_path, caplog):
    boxes = [[0, 0, 5, 5], [np.nan, 0, 5, 5], [40, 2, 50, 9], [20, 20, 99, 99], [5, 5, 5, 9]]
    np.save(cache / "0.npy", np.array(boxes, np.float32))
    np.save(cache / "1.npy", np.zeros((0, 4), np.float32))
    store = import_npy(cache, tmp_path / "store", dataset=load_dataset(image_folder))
    assert store["first/0.png"].boxes.tolist() == [[0, 0, 5, 5], [20, 20, 32, 24]]
    assert len(store["first/1.png"].boxes) == 0
    assert "left out 3 boxes" in caplog.text


def test_a_name_that_two_images_share_is_an_error(image_folder, cache, tmp_path, write_image):
    write_image(image_folder / "second" / "3.left.png")
    with pytest.raises(ValueError, match=r"'first/3\.png' and 'second/3\.left\.png' would both"):
        import_npy(cache, tmp_path / "store", dataset=load_dataset(image_folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((3, 5)), r"0\.npy: expected boxes \(N, 4\), got float64 \(3, 5\)"),
        (np.array([["a"] * 4]), r"0\.npy: expected boxes"),
        (np.array([{}], dtype=object), r"0\.npy is no array of NumPy"),
        (None, r"0\.npy is no array of NumPy"),
    ],
)
def test_files_that_hold_no_boxes_are_named(image_folder, cache, tmp_path, content, message):
    if content is None:
        (cache / "0.npy").write_bytes(b"nothing")
    else:
        np.save(cache / "0.npy", content, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        import_npy(cache, tmp_path / "store", dataset=load_dataset(image_folder))


def test_a_folder_of_other_images_is_an_error(image_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no boxes of images: there is no file 0\.npy"):
        import_npy(tmp_path / "empty", tmp_path / "store", dataset=load_dataset(image_folder))
    assert not (tmp_path / "store").exists()
