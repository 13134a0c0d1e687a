"""The command line around box stores."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from predet.data.box_store import BoxRow, BoxStore
from predet.data.box_store_writer import BoxStoreWriter, StoreInfo
from predet.data.formats import load_dataset
from predet.data.scenes import make_scenes

TOOL = Path(__file__).parents[2] / "tools" / "box_store.py"


def test_import_show_and_export(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = make_scenes(tmp_path / "scenes", num_images=4, image_size=64, num_classes=3, seed=0)
    count = len(json.loads(Path(truth).read_text())["annotations"])
    images = ["--images", str(tmp_path / "scenes")]
    store, results = str(tmp_path / "store"), str(tmp_path / "results.json")
    tool.main(["import", str(truth), "--output", store, "--method", "drawn", *images])
    assert f"4 images, {count} boxes" in capsys.readouterr().out

    tool.main(["show", store])
    shown = capsys.readouterr().out
    assert '"method": "drawn"' in shown
    assert f"4 images, {count} boxes" in shown
    assert f"score >= 0.7: {count / 4:.2f} an image" in shown
    key = BoxStore(store).keys[0]
    tool.main(["show", store, "--key", key])
    assert f"{key}: 64 x 64 pixels" in capsys.readouterr().out

    tool.main(["export", store, "--output", results, "--results", *images])
    tool.main(["import", results, "--output", str(tmp_path / "again"), *images])
    for row, other in zip(BoxStore(store), BoxStore(tmp_path / "again"), strict=True):
        assert row.key == other.key
        assert row.boxes.tolist() == other.boxes.tolist()
        assert row.classes.tolist() == other.classes.tolist()


@pytest.mark.parametrize("own", [(0, 1, 2), (1, 3, 90)])
def test_exported_categories_are_those_of_the_data_set(
    tool: ModuleType, tmp_path: Path, own: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """By name: a store of pseudo-boxes has classes in an order of its own, and no ids."""
    truth = Path(make_scenes(tmp_path / "s", num_images=2, image_size=64, num_classes=3, seed=0))
    content = json.loads(truth.read_text())
    ids = {category["id"]: new for category, new in zip(content["categories"], own, strict=True)}
    for part, key in (("categories", "id"), ("annotations", "category_id")):
        content[part] = [{**item, key: ids[item[key]]} for item in content[part]]
    truth.write_text(json.dumps(content))
    dataset = load_dataset(tmp_path / "s")
    names = dataset.class_names[::-1]
    writer = BoxStoreWriter(
        tmp_path / "store", info=StoreInfo(method="teacher", class_names=names), keys=dataset.keys()
    )
    boxes = np.tile(np.float32([[1, 2, 30, 40]]), (3, 1))
    scores = np.float32([0.9, 0.8, 0.7])
    rows = [BoxRow(key, 64, 64, boxes, scores, np.arange(3)) for key in list(dataset.keys())]
    for shard in writer.missing_shards():
        writer.write_shard(shard, rows[writer.shard_slice(shard)])
    writer.finish()
    store, out = str(tmp_path / "store"), tmp_path / "results.json"
    images = ["--images", str(tmp_path / "s")]
    tool.main(["export", store, "--output", str(out), "--results", *images])
    assert [item["category_id"] for item in json.loads(out.read_text())[:3]] == list(own[::-1])
    tool.main(["import", str(out), "--output", str(tmp_path / "again"), *images])
    again = BoxStore(tmp_path / "again")
    shown = [[again.class_names[c] for c in row.classes] for row in again]
    assert shown == [list(names)] * 2

    make_scenes(tmp_path / "other", num_images=2, image_size=64, num_classes=2, seed=0)
    tool.main(["export", store, "--output", str(out), "--images", str(tmp_path / "other")])
    assert f"has no class '{names[0]}' of box store" in caplog.text


def test_what_tells_levels_of_selective_search_is_no_box(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = np.float32([[0, 0, 9, 9], [2, 2, 8, 8], [2, 2, 8, 8], [0, 0, 9, 9], [2, 2, 8, 8]])
    row = BoxRow("a.png", 10, 10, boxes, np.float32([1, 0.5, -3, -2, -1]), np.zeros(5, int))
    info = StoreInfo(method="selective_search-fast")
    writer = BoxStoreWriter(tmp_path / "store", info=info, keys=["a.png"])
    writer.write_shard(0, [row])
    writer.finish()
    tool.main(["show", str(tmp_path / "store")])
    shown = capsys.readouterr().out
    assert "1 images, 2 boxes (besides what tells levels" in shown
    assert "0.500, 0.625, 0.750, 0.875, 1.000 (least" in shown
    tool.main(["show", str(tmp_path / "store"), "--key", "a.png"])
    assert "10 x 10 pixels, 2 boxes" in capsys.readouterr().out
    tool.main(["export", str(tmp_path / "store"), "--output", str(tmp_path / "boxes.json")])
    written = json.loads((tmp_path / "boxes.json").read_text())["annotations"]
    assert [(one["bbox"], one["score"]) for one in written] == [
        ([0, 0, 9, 9], 1),
        ([2, 2, 6, 6], 0.5),
    ]


def test_errors_are_one_line(tool: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="error: no box store in"):
        tool.main(["show", str(tmp_path)])
    truth = make_scenes(tmp_path / "scenes", num_images=1, image_size=64, num_classes=3, seed=0)
    tool.main(["import", str(truth), "--output", str(tmp_path / "store")])
    with pytest.raises(SystemExit, match=r"error: box store .* holds no image 'x\.png'"):
        tool.main(["show", str(tmp_path / "store"), "--key", "x.png"])


def test_import_of_a_folder_of_arrays(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_scenes(tmp_path / "scenes", num_images=2, image_size=64, num_classes=3, seed=0)
    images = ["--images", str(tmp_path / "scenes")]
    dataset = load_dataset(tmp_path / "scenes")
    (tmp_path / "cache").mkdir()
    for index in range(len(dataset)):
        name = f"{Path(dataset.key(index)).stem}.npy"
        np.save(tmp_path / "cache" / name, np.float32([[1, 2, 30, 40]]))
    store = str(tmp_path / "store")
    tool.main(["import", str(tmp_path / "cache"), "--output", store, *images])
    assert "2 images, 2 boxes" in capsys.readouterr().out
    assert BoxStore(store)[dataset.key(0)].boxes.tolist() == [[1, 2, 30, 40]]
    with pytest.raises(SystemExit, match=r"is a folder of \.npy files: give --images"):
        tool.main(["import", str(tmp_path / "cache"), "--output", str(tmp_path / "other")])


def test_import_without_classes(tool: ModuleType, tmp_path: Path) -> None:
    truth = make_scenes(tmp_path / "scenes", num_images=2, image_size=64, num_classes=3, seed=0)
    store = str(tmp_path / "store")
    tool.main(["import", str(truth), "--output", store, "--class-agnostic"])
    assert BoxStore(store).class_names is None
    assert all(not row.classes.any() for row in BoxStore(store))


def test_filter_makes_a_new_store(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = make_scenes(tmp_path / "scenes", num_images=4, image_size=64, num_classes=3, seed=0)
    store, new = str(tmp_path / "store"), str(tmp_path / "new")
    tool.main(["import", str(truth), "--output", store])
    tool.main(
        ["filter", store, "--output", new, "--min-size", "12", "--nms", "0.5", "--first", "2"]
    )
    assert f"{new}: 4 images" in capsys.readouterr().out
    names = [next(iter(one)) for one in BoxStore(new).meta["parameters"]["filters"]]
    assert names == ["MinSize", "NonMaximum", "FirstK"]
    for row in BoxStore(new):
        assert len(row.boxes) <= 2
        assert (row.boxes[:, 2:] - row.boxes[:, :2] >= 12).all()
    with pytest.raises(SystemExit, match="error: there is nothing to filter by"):
        tool.main(["filter", store, "--output", str(tmp_path / "x")])
    options = ["--recipe", "soco", "--aspect", "2"]
    with pytest.raises(SystemExit, match="error: --recipe stands in for"):
        tool.main(["filter", store, "--output", str(tmp_path / "x"), *options])
