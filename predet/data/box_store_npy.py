"""DETReg's cache of boxes into a `BoxStore`: a folder with one .npy file for each image.

A file holds (N, 4) float32 absolute xyxy in pixels of the original image, in the order of the
search, and is called after the image: its file name up to the first dot, without its folders. So
two images may have wanted the same file, which is an error here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from predet.data.box_store import BoxRow, BoxStore
from predet.data.box_store_writer import BoxStoreWriter, StoreInfo
from predet.data.dataset import DetectionDataset
from predet.data.images import BadSampleError, read_image_size

logger = logging.getLogger(__name__)


def import_npy(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    dataset: DetectionDataset,
    method: str = "npy",
) -> BoxStore:
    """Make a store of a cache.

    The i-th of n boxes scores 1 - i / n. Boxes are clipped to their image; those that are not
    finite or have no area are left out, counted in the log. Images without a file are listed in the
    store as skipped.

    Args:
        source: the cache.
        output: the store's folder.
        dataset: the images.
        method: what made the boxes, written into the store.

    Raises:
        ValueError: two images of one file's name, no file at all, or a file that does not hold
            such boxes.
    """
    folder, keys = Path(source), dataset.keys()
    files = [folder / f"{key.rsplit('/', 1)[-1].split('.')[0]}.npy" for key in keys]
    _check_names(keys, files)
    if not any(file.is_file() for file in files):
        raise ValueError(
            f"{folder} holds no boxes of {dataset.name}: there is no file {files[0].name} for "
            f"'{keys[0]}', nor one for any other image"
        )
    info = StoreInfo(
        method=method,
        parameters={"folder": folder.name},
        image_root=os.path.abspath(dataset.root),
        dataset=dataset.name,
    )
    writer = BoxStoreWriter(output, info=info, keys=keys)
    left_out = 0
    missing = writer.missing_shards()
    if not missing:
        logger.warning("%s is finished: the files in %s are not looked at again", output, folder)
    for shard in missing:
        rows, skipped = [], {}
        part = writer.shard_slice(shard)
        for index in range(part.start, part.stop):
            try:
                row, dropped = _row(dataset, index, files[index])
                rows.append(row)
                left_out += dropped
            except BadSampleError as error:
                skipped[keys[index]] = str(error)
        writer.write_shard(shard, rows, skipped=skipped)
    store = writer.finish()
    logger.info("%s: %d images, %d without a file", store.path, len(store), len(store.skipped))
    if left_out:
        logger.warning(
            "%s: left out %d boxes that are not finite or have no area inside their image",
            folder,
            left_out,
        )
    return store


def _row(dataset: DetectionDataset, index: int, file: Path) -> tuple[BoxRow, int]:
    """The row of an image, and how many boxes were left out."""
    if not file.is_file():
        raise BadSampleError(f"there is no file {file.name}")
    record = dataset[index]
    height, width = record.height, record.width
    if not height:
        height, width = read_image_size(record.path)
    boxes = _load(file)
    finite = boxes[np.isfinite(boxes).all(axis=1)]
    clipped = np.clip(finite, 0, [width, height, width, height]).astype(np.float32)
    kept = clipped[(clipped[:, 2:] > clipped[:, :2]).all(axis=1)]
    scores = 1 - np.arange(len(kept)) / max(len(kept), 1)
    row = BoxRow(record.key, height, width, kept, scores, np.zeros(len(kept), np.int64))
    return row, len(boxes) - len(kept)


def _load(file: Path) -> np.ndarray:
    """(N, 4) float64."""
    try:
        boxes = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{file} is no array of NumPy: {error}") from error
    if boxes.dtype.kind not in "fiu" or boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{file}: expected boxes (N, 4), got {boxes.dtype} {boxes.shape}")
    return boxes.astype(np.float64)


def _check_names(keys: Sequence[str], files: Sequence[Path]) -> None:
    first: dict[Path, str] = {}
    for key, file in zip(keys, files, strict=True):
        if file in first:
            raise ValueError(
                f"'{first[file]}' and '{key}' would both have their boxes in {file}: it cannot be "
                "told whose they are"
            )
        first[file] = key
