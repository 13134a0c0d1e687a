"""Classes for boxes that have none: clusters of the features of their regions.

AlignDet (section 3.2) pre-trains detectors of the DETR family on such classes: features of a frozen
backbone, reduced by PCA to 256 dimensions, in 256 clusters of k-means. Its code for this is not
published. Ours, because no text tells: features are scaled to unit length first, so that k-means
compares directions; k-means takes minibatches; both are fitted on a sample of the regions.

Legend: N regions, F features, D dimensions after PCA, K clusters.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA

from predet.data.box_store import BoxRow, BoxStore
from predet.data.box_store_writer import BoxStoreWriter, StoreInfo
from predet.data.dataset import DetectionDataset
from predet.data.images import read_image
from predet.data.store_checks import skipped_images

logger = logging.getLogger(__name__)

# (H, W, 3) uint8 RGB and its boxes (N, 4) -> (N, F)
Describe = Callable[[np.ndarray, np.ndarray], np.ndarray]

_KMEANS_BATCH = 4096
_TELLING = ("method", "parameters", "seed", "counts", "fingerprint")  # of a store: which boxes
_REPORT_EVERY = 10.0  # seconds


@dataclasses.dataclass(frozen=True)
class RegionClusters:
    """PCA and k-means that were fitted: a function from features to cluster numbers."""

    mean: np.ndarray  # (F,)
    components: np.ndarray  # (D, F)
    centers: np.ndarray  # (K, D)

    def assign(self, features: np.ndarray) -> np.ndarray:
        """(N, F) -> (N,) int64, the nearest centre."""
        reduced = (_unit(features) - self.mean) @ self.components.T
        distances = (self.centers**2).sum(axis=1) - 2 * reduced @ self.centers.T
        return distances.argmin(axis=1).astype(np.int64)


def fit_clusters(
    features: np.ndarray, *, num_clusters: int, dimensions: int = 256, seed: int = 0
) -> RegionClusters:
    """PCA, then k-means.

    Args:
        features: (N, F).
        num_clusters: K.
        dimensions: D at most; there are no more than F and N.
        seed: of all draws.

    Raises:
        ValueError: fewer regions than clusters, features that are not finite or all the same.
    """
    if num_clusters < 1 or dimensions < 1:
        raise ValueError(
            f"clusters and dimensions must be at least 1, got {num_clusters} and {dimensions}"
        )
    if len(features) < num_clusters:
        raise ValueError(
            f"{num_clusters} clusters of {len(features)} regions are not possible: ask for fewer "
            "clusters, or give more regions"
        )
    if not np.isfinite(features).all():
        raise ValueError("features of regions are not finite")
    features = _unit(features)
    if not (np.ptp(features, axis=0) > 0).any() and num_clusters > 1:
        raise ValueError(
            f"the features of all {len(features)} regions are the same: the encoder has collapsed"
        )
    reduction = PCA(n_components=min(dimensions, *features.shape), random_state=seed)
    reduced = reduction.fit_transform(features)
    means = MiniBatchKMeans(
        num_clusters, batch_size=_KMEANS_BATCH, n_init=3, random_state=seed
    ).fit(reduced)
    logger.info(
        "%d regions: %d of %d dimensions keep %.0f%% of the variance; %d clusters",
        len(features),
        reduction.n_components_,
        features.shape[1],
        100 * reduction.explained_variance_ratio_.sum(),
        num_clusters,
    )
    return RegionClusters(
        reduction.mean_.astype(np.float32),
        reduction.components_.astype(np.float32),
        means.cluster_centers_.astype(np.float32),
    )


def cluster_store(
    source: BoxStore,
    output: str | os.PathLike[str],
    *,
    dataset: DetectionDataset,
    describe: Describe,
    encoder: Mapping[str, Any],
    num_clusters: int = 256,
    dimensions: int = 256,
    sample: int = 50_000,
    seed: int = 0,
) -> BoxStore:
    """A new store with the same boxes, whose classes are their clusters.

    The fit is on the regions of images drawn by `seed` until there are `sample` regions. It is kept
    beside the store, as `OUTPUT.clusters.npz`; the same call goes on with it after a kill.

    Args:
        source: a finished store.
        output: the new store's folder.
        dataset: the images of the store, all of them.
        describe: features of an image's boxes.
        encoder: what `describe` is, for the record; fits into JSON.
        num_clusters, dimensions: as in `fit_clusters`.
        sample: regions that are fitted on, at least; all, if there are fewer.
        seed: of the draw, PCA and k-means.

    Raises:
        ValueError: fewer regions than clusters, features that are not finite, images that the data
            set does not have.
        BadSampleError: an image cannot be read.
    """
    boxes = source.meta["counts"]["boxes"]
    if 0 < boxes < num_clusters:  # told before any image is described
        raise ValueError(
            f"{num_clusters} clusters of {boxes} regions are not possible: box store "
            f"{source.path} has no more. Ask for fewer clusters, or give more regions"
        )
    settings = {
        "encoder": dict(encoder),
        "clusters": num_clusters,
        "dimensions": dimensions,
        "sample": sample,
        "seed": seed,
    }
    writer = BoxStoreWriter(
        output,
        info=_info(source, settings, num_clusters),
        keys=[*source.keys, *source.skipped],
        shard_size=source.meta["shard_size"],
    )
    missing = writer.missing_shards()
    if not missing:
        return writer.finish()
    job = _Job(source, _paths(source, dataset), describe)
    known: dict[str, np.ndarray] = {}  # clusters of the images that were fitted on
    fit_file = Path(f"{os.fspath(output).rstrip('/')}.clusters.npz")
    fitted_on = {**settings, "source": {name: source.meta[name] for name in _TELLING}}
    clusters = _read_fit(fit_file, fitted_on)
    if clusters is None:
        keys, features = job.sample(sample, seed)
        counts = [len(part) for part in features]
        together = np.concatenate(features)
        clusters = fit_clusters(
            together, num_clusters=num_clusters, dimensions=dimensions, seed=seed
        )
        _write_fit(fit_file, clusters, fitted_on)
        parts = np.split(clusters.assign(together), np.cumsum(counts)[:-1])
        known = dict(zip(keys, parts, strict=True))
    skipped = source.skipped
    for shard in missing:
        keys = writer.shard_keys(shard)
        rows = []
        for key in (key for key in keys if key not in skipped):
            row = source[key]
            classes = known.get(key)
            if classes is None and len(row.boxes):
                classes = clusters.assign(job.features(row))
            elif classes is None:
                classes = np.zeros(0, np.int64)
            rows.append(row._replace(classes=classes))
        gone = {key: skipped[key] for key in keys if key in skipped}
        writer.write_shard(shard, rows, skipped=gone)
    return writer.finish()


class _Job:
    """Features of the boxes of a store's images."""

    def __init__(self, store: BoxStore, paths: Mapping[str, str], describe: Describe) -> None:
        self.store, self.paths, self.describe = store, paths, describe
        self.done, self.started = 0, time.monotonic()
        self.reported = self.started

    def features(self, row: BoxRow) -> np.ndarray:
        """(N, F) of a row's boxes, of which there are some."""
        image = read_image(self.paths[row.key])
        if image.shape[:2] != (row.height, row.width):
            raise ValueError(
                f"{self.paths[row.key]} has {image.shape[1]}x{image.shape[0]} pixels, box store "
                f"{self.store.path} says {row.width}x{row.height}: was it made from other images?"
            )
        features = np.asarray(self.describe(image, row.boxes), dtype=np.float32)
        broken = int((~np.isfinite(features).all(axis=1)).sum())
        if broken:
            raise ValueError(
                f"features of {broken} of {len(features)} regions of '{row.key}' are not finite: "
                "the weights of this encoder are broken"
            )
        self._report()
        return features

    def sample(self, least: int, seed: int) -> tuple[list[str], list[np.ndarray]]:
        """Images drawn until their regions are enough, each with its features."""
        order = np.random.default_rng(seed).permutation(len(self.store))
        keys, features, count = [], [], 0
        every = self.store.keys
        for index in order.tolist():
            if count >= least:
                break
            row = self.store[every[index]]
            if not len(row.boxes):
                continue
            keys.append(row.key)
            features.append(self.features(row))
            count += len(row.boxes)
        if not features:
            raise ValueError(f"box store {self.store.path} holds no boxes: nothing to cluster")
        logger.info("fitted on %d regions of %d images", count, len(keys))
        return keys, features

    def _report(self) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.reported >= _REPORT_EVERY:
            self.reported = now
            rate = self.done / (now - self.started)
            logger.info("%d images described, %.1f images/s", self.done, rate)


def _paths(store: BoxStore, dataset: DetectionDataset) -> dict[str, str]:
    """Where the images of the store are.

    Raises:
        ValueError: the data set lacks some, or the store lacks images of the data set.
    """
    skipped_images(dataset, store)
    paths = {dataset.key(index): dataset[index].path for index in range(len(dataset))}
    absent = [key for key in store.keys if key not in paths]
    if absent:
        raise ValueError(
            f"{dataset.name} lacks {len(absent)} of the {len(store)} images of box store "
            f"{store.path}, the first is '{absent[0]}'"
        )
    return paths


def _info(store: BoxStore, settings: Mapping[str, Any], num_clusters: int) -> StoreInfo:
    meta = store.meta
    width = len(str(num_clusters - 1))
    return StoreInfo(
        method=meta["method"],
        parameters={**meta["parameters"], "clustered": dict(settings)},
        class_names=tuple(f"cluster {number:0{width}d}" for number in range(num_clusters)),
        image_root=meta["image_root"],
        dataset=meta["dataset"],
        seed=meta["seed"],
        teacher=meta["teacher"],
        selection=meta["selection"],
    )


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, dtype=np.float32)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norms, 1e-12)


def _read_fit(path: Path, settings: Mapping[str, Any]) -> RegionClusters | None:
    """What an earlier call with these settings has fitted."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as content:
            parts = {name: content[name] for name in content.files}
        told = json.loads(str(parts.pop("settings")))
        clusters = RegionClusters(**parts)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a fit of regions: remove it ({error})") from error
    if told != json.loads(json.dumps(settings)):
        logger.warning("%s was fitted with other settings or on other boxes: fitting anew", path)
        return None
    logger.info("going on with the fit of %s", path)
    return clusters


def _write_fit(path: Path, clusters: RegionClusters, settings: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, **dataclasses.asdict(clusters), settings=json.dumps(settings))
    os.replace(temporary, path)
