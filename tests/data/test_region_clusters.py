"""Clusters of regions: against PCA by definition, planted groups, kills and bad input."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from predet.data.box_filters import FirstK, filter_store
from predet.data.box_store import BoxRow, BoxStore
from predet.data.box_store_writer import BoxStoreWriter, StoreInfo
from predet.data.formats import load_dataset
from predet.data.region_clusters import RegionClusters, cluster_store, fit_clusters

COLORS = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [240, 240, 10]])
IMAGES = 7


def planted(count: int, groups: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(groups, 24))
    of = rng.integers(groups, size=count)
    lengths = rng.uniform(0.5, 3, (count, 1))  # directions count, lengths do not
    return lengths * (centers[of] + 0.1 * rng.normal(size=(count, 24))), of


def test_planted_groups_are_found() -> None:
    features, of = planted(600, groups=6, seed=0)
    clusters = fit_clusters(features, num_clusters=6, dimensions=8, seed=0)
    assert clusters.components.shape == (8, 24)
    assert adjusted_rand_score(of, clusters.assign(features)) == 1
    more, of_more = planted(200, groups=6, seed=0)
    assert adjusted_rand_score(of_more, clusters.assign(more)) == 1
    assert np.array_equal(clusters.assign(5 * more), clusters.assign(more))


def test_assignment_is_the_nearest_centre_after_pca() -> None:
    features, _ = planted(80, groups=3, seed=1)
    clusters = fit_clusters(features, num_clusters=5, dimensions=4, seed=2)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    mean = unit.mean(axis=0)
    _, _, axes = np.linalg.svd(unit - mean, full_matrices=False)  # PCA by definition
    reduced = (unit - mean) @ axes[:4].T
    signs = np.sign((clusters.components * axes[:4]).sum(axis=1))
    np.testing.assert_allclose(clusters.components, signs[:, None] * axes[:4], atol=1e-3)
    centers = clusters.centers * signs
    wanted = [min(range(5), key=lambda k: np.linalg.norm(row - centers[k])) for row in reduced]
    assert (clusters.assign(features) == wanted).mean() > 0.98  # but for ties of rounding


def test_the_seed_decides() -> None:
    features, _ = planted(300, groups=12, seed=3)
    fits = [fit_clusters(features, num_clusters=8, dimensions=6, seed=s) for s in (0, 0, 1)]
    assert np.array_equal(fits[0].centers, fits[1].centers)
    assert not np.array_equal(fits[0].centers, fits[2].centers)


def test_more_dimensions_than_there_are_is_no_error() -> None:
    features, _ = planted(10, groups=2, seed=0)
    assert fit_clusters(features, num_clusters=10, dimensions=256).components.shape == (10, 24)


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (np.ones((5, 3)), {"num_clusters": 6}, "6 clusters of 5 regions are not possible"),
        (np.full((5, 3), np.nan), {"num_clusters": 2}, "not finite"),
        (np.ones((5, 3)), {"num_clusters": 2}, "all 5 regions are the same"),
        (np.eye(3), {"num_clusters": 0}, "at least 1, got 0"),
        (np.eye(3), {"num_clusters": 2, "dimensions": 0}, "at least 1, got 2 and 0"),
    ],
)
def test_what_cannot_be_clustered_is_refused(
    features: np.ndarray, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit_clusters(features, **options)


@pytest.fixture
def store(tmp_path: Path) -> BoxStore:
    """Coloured squares, three in each image, behind them a row that only tells a level."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    rows = []
    info = StoreInfo(method="selective_search", selection={"top_k": 3, "score_threshold": 0.0})
    keys = [f"{number}.png" for number in range(IMAGES)]
    writer = BoxStoreWriter(tmp_path / "store", info=info, keys=keys, shard_size=2)

    for key in keys:
        image = np.full((40, 90, 3), 128, np.uint8)
        boxes = np.array([[5 + 30 * i, 5, 25 + 30 * i, 30] for i in range(3)], np.float32)
        for left, color in zip((5, 35, 65), rng.permutation(COLORS)[:3], strict=True):
            image[5:30, left : left + 20] = color[::-1]
        cv2.imwrite(str(tmp_path / "images" / key), image)
        scores = np.array([1, 0.7, 0.3, -2], np.float32)
        rows.append(BoxRow(key, 40, 90, boxes[[0, 1, 2, 0]], scores, np.zeros(4, np.int64)))
    for shard in writer.missing_shards():
        writer.write_shard(shard, rows[writer.shard_slice(shard)])
    return writer.finish()


def colour_of(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """What a perfect encoder would say: the colour in the middle."""
    middle = ((boxes[:, :2] + boxes[:, 2:]) / 2).astype(int)
    return image[middle[:, 1], middle[:, 0]].astype(np.float32)


def clustered(store: BoxStore, tmp_path: Path, name: str = "new", **options) -> BoxStore:
    arguments = {
        "dataset": load_dataset(tmp_path / "images"),
        "describe": colour_of,
        "encoder": {"features": "colour"},
        "num_clusters": 4,
        "dimensions": 3,
        **options,
    }
    return cluster_store(store, tmp_path / name, **arguments)


def test_classes_of_the_new_store_are_the_clusters(store: BoxStore, tmp_path: Path) -> None:
    result = clustered(store, tmp_path)
    assert result.class_names == ("cluster 0", "cluster 1", "cluster 2", "cluster 3")
    assert result.meta["selection"] == {"top_k": 3, "score_threshold": 0.0}
    assert result.meta["parameters"]["clustered"] == {
        "encoder": {"features": "colour"},
        "clusters": 4,
        "dimensions": 3,
        "sample": 50_000,
        "seed": 0,
    }
    dataset = load_dataset(tmp_path / "images")
    paths = {dataset.key(i): dataset[i].path for i in range(len(dataset))}
    by_colour: dict[tuple, set[int]] = {}
    for row, before in zip(result, store, strict=True):
        assert row.boxes.tolist() == before.boxes.tolist()
        assert row.scores.tolist() == before.scores.tolist()
        image = cv2.imread(paths[row.key])[:, :, ::-1]
        for color, cluster in zip(colour_of(image, row.boxes), row.classes, strict=True):
            by_colour.setdefault(tuple(color), set()).add(int(cluster))
    assert len(by_colour) == 4
    assert all(len(found) == 1 for found in by_colour.values())
    assert len(set.union(*by_colour.values())) == 4


def test_images_without_boxes_are_not_described(store: BoxStore, tmp_path: Path) -> None:
    kept = filter_store(store, tmp_path / "kept", filters=[FirstK(k=3)])
    rows = {row.key: row for row in kept}
    first = next(iter(rows))
    none = rows[first]._replace(
        boxes=np.zeros((0, 4), np.float32),
        scores=np.zeros(0, np.float32),
        classes=np.zeros(0, np.int64),
    )
    info = StoreInfo(method="filtered")
    writer = BoxStoreWriter(tmp_path / "some", info=info, keys=list(rows), shard_size=2)
    rows[first] = none
    for shard in writer.missing_shards():
        writer.write_shard(shard, [rows[key] for key in writer.shard_keys(shard)])

    def describe(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        assert len(boxes) > 0
        return colour_of(image, boxes)

    result = clustered(writer.finish(), tmp_path, describe=describe)
    assert [len(row.classes) for row in result] == [0, *[3] * (IMAGES - 1)]


def test_a_sample_is_enough_and_is_drawn_by_the_seed(store: BoxStore, tmp_path: Path) -> None:
    seen: list[int] = []

    def watched(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        seen.append(len(boxes))
        return colour_of(image, boxes)

    clustered(store, tmp_path, "few", describe=watched, sample=5, num_clusters=3)
    # Two images were described for the fit, and not again for their classes.
    assert len(seen) == IMAGES
    with pytest.raises(ValueError, match="8 clusters of 6 regions"):
        clustered(store, tmp_path, "fewer", sample=6, num_clusters=8)
    drawn = []
    for seed in (0, 0, 1):
        first: list[bytes] = []

        def watched_colours(image: np.ndarray, boxes: np.ndarray, to=first) -> np.ndarray:
            to.append(image.tobytes())
            return colour_of(image, boxes)

        shutil.rmtree(tmp_path / "drawn", ignore_errors=True)
        (tmp_path / "drawn.clusters.npz").unlink(missing_ok=True)
        options = {"describe": watched_colours, "sample": 5, "num_clusters": 3}
        clustered(store, tmp_path, "drawn", seed=seed, **options)
        drawn.append(set(first[:2]))
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_killed_job_goes_on_with_the_same_clusters(store: BoxStore, tmp_path: Path) -> None:
    first = clustered(store, tmp_path)
    classes = [row.classes.tolist() for row in first]
    fit = tmp_path / "new.clusters.npz"
    assert fit.exists()
    calls = itertools.count()

    def counted(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        next(calls)
        return colour_of(image, boxes)

    (tmp_path / "new" / "boxes-00001-of-00004.parquet").unlink()
    again = clustered(store, tmp_path, describe=counted)
    assert next(calls) == 2  # the images of the shard that was gone
    assert [row.classes.tolist() for row in again] == classes
    assert clustered(store, tmp_path, describe=counted).meta == again.meta
    assert next(calls) == 3
    with pytest.raises(ValueError, match="other settings"):
        clustered(store, tmp_path, seed=1)
    fit.write_text("no fit")
    (tmp_path / "new" / "boxes-00001-of-00004.parquet").unlink()
    with pytest.raises(ValueError, match="not a fit of regions: remove it"):
        clustered(store, tmp_path)


def test_other_boxes_are_fitted_anew(
    store: BoxStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clustered(store, tmp_path)
    shutil.rmtree(tmp_path / "new")  # but not the fit beside it
    fewer = filter_store(store, tmp_path / "fewer", filters=[FirstK(k=2)])
    clustered(fewer, tmp_path)
    assert "on other boxes: fitting anew" in caplog.text


def test_more_clusters_than_regions_are_refused_before_any_is_described(
    store: BoxStore, tmp_path: Path
) -> None:
    def never(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        raise AssertionError("described")

    regions = 3 * IMAGES
    message = rf"{regions + 1} clusters of {regions} regions .*{store.path.name} has no more"
    with pytest.raises(ValueError, match=message):
        clustered(store, tmp_path, describe=never, num_clusters=regions + 1)
    assert not (tmp_path / "new").exists()


def test_bad_features_and_other_images_are_named(store: BoxStore, tmp_path: Path) -> None:
    def broken(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        features = colour_of(image, boxes)
        features[0, 0] = np.nan
        return features

    with pytest.raises(ValueError, match=r"1 of [23] regions of '\d\.png' are not finite"):
        clustered(store, tmp_path, describe=broken)
    cv2.imwrite(str(tmp_path / "images" / "3.png"), np.zeros((50, 90, 3), np.uint8))
    with pytest.raises(ValueError, match=r"3\.png has 90x50 pixels, .* says 90x40"):
        clustered(store, tmp_path, "other")
    (tmp_path / "images" / "3.png").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of the 7 images .*'3\.png'"):
        clustered(store, tmp_path, "fewer images")


def test_a_store_without_boxes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "0.png"), np.zeros((9, 9, 3), np.uint8))

    writer = BoxStoreWriter(tmp_path / "store", info=StoreInfo(method="none"), keys=["0.png"])
    empty = BoxRow("0.png", 9, 9, np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    writer.write_shard(0, [empty])
    with pytest.raises(ValueError, match="holds no boxes: nothing to cluster"):
        clustered(writer.finish(), tmp_path)


def test_clusters_are_a_function_of_features() -> None:
    features, _ = planted(50, groups=3, seed=0)
    clusters = fit_clusters(features, num_clusters=3, dimensions=4)
    twin = RegionClusters(clusters.mean, clusters.components, clusters.centers)
    assert np.array_equal(twin.assign(features), clusters.assign(features))
    assert len(clusters.assign(features[:0])) == 0
