#!/usr/bin/env python
"""Selective Search, or EdgeBoxes, on many images: the boxes go into a box store.

    tools/extract_proposals.py --images photos/ --output stores/photos-ss --resize 500 --workers 8
    tools/extract_proposals.py --images photos/ --output stores/photos-detreg --recipe detreg
    tools/extract_proposals.py --images photos/ --output stores/photos-edges --method edge_boxes

IMAGES is a folder of images or any data set that predet reads (with --split where it has splits);
annotations are not looked at. Boxes are stored in the frame of the original image.

--resize WIDTHxHEIGHT ignores the aspect ratio; --resize MAX_SIDE shrinks larger images, keeping it.
--recipe detreg is what DETReg trained with: fast mode at 128x128, red and blue swapped (its code
hands RGB to a function that reads BGR), the first 30 boxes. Options given besides win.

A row of the store has the image's N boxes in an order drawn from --seed and the image's key, scored
1, 1 - 1/N, ..., and then, scored below 0, what predet.ops.selective_search.from_rows needs to draw
another order. Readers use the --top-k first boxes unless told otherwise.

--method edge_boxes stores EdgeBoxes by score; of the options for the search it takes --resize
MAX_SIDE or off (default: 400) and --edge-model, OpenCV's structured forest. Without that file edges
are the gradients of colours, which is not what the paper's authors did; see predet.data.edge_boxes.

--device cuda searches many images at once on a GPU; the boxes are the same. The CPU still does the
colours, with --workers threads.

The job can be killed at any time: the same command goes on with the shards that are missing.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import multiprocessing
import os
import shlex
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from predet.data.box_store import BoxRow
from predet.data.box_store_writer import BoxStoreWriter, StoreInfo
from predet.data.dataset import DetectionDataset
from predet.data.edge_boxes import EdgeBoxSearch
from predet.data.images import BadSampleError, read_image
from predet.data.region_search import RegionSearch, in_frame, warn_without_levels
from predet.data.sources import load_images
from predet.engine.command_line import errors_in_one_line
from predet.engine.log import setup_logging
from predet.ops import selective_search
from predet.ops.selective_search import Regions

logger = logging.getLogger("predet.tools.extract_proposals")

EDGE_MAX_SIDE = 400
REPORT_EVERY = 10.0  # seconds
CUDA_BATCH = 256  # images searched at once, if the device's memory holds them
# Options of Selective Search that have no value of their own.
SHARED = {"mode": "fast", "top_k": 30, "inc_k": 150.0, "sigma": 0.8, "min_size": 100, "seed": 0}
RECIPES = {
    "default": {**SHARED, "resize": "500", "channel_order": "rgb"},
    "detreg": {**SHARED, "resize": "128x128", "channel_order": "bgr"},
}
NOT_OF_EDGE_BOXES = ("mode", "channel_order", "base_k", "inc_k", "min_size", "seed")


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """How the boxes of one image are made; a pure function of the image and its key."""

    search: RegionSearch
    seed: int

    def row(self, key: str, path: str) -> BoxRow:
        """Search one image file.

        Raises:
            BadSampleError: the file is no image, or one too large to be searched.
        """
        size, image = self.read(path)
        return self.row_of(key, size, image, self.search.search([image])[0])

    def read(self, path: str) -> tuple[tuple[int, int], np.ndarray]:
        """Height and width of an image file, and the image as it is searched."""
        image = read_image(path)
        return image.shape[:2], self.search.resized(image, name=path)

    def row_of(
        self, key: str, size: tuple[int, int], image: np.ndarray, regions: Regions
    ) -> BoxRow:
        """The row of a store from what was found in `image`, whose file has another size."""
        regions = in_frame(regions, image.shape[:2], size)
        order = selective_search.rank(regions, (self.seed, zlib.crc32(key.encode())))
        boxes, scores = selective_search.to_rows(regions, order)
        return BoxRow(key, *size, boxes, scores, np.zeros(len(boxes), dtype=np.int64))


@dataclass(frozen=True, kw_only=True)
class EdgeProposals:
    """The same by EdgeBoxes."""

    search: EdgeBoxSearch
    seed: None = None  # nothing is drawn

    def row(self, key: str, path: str) -> BoxRow:
        """Search one image file.

        Raises:
            BadSampleError: the file is no image.
        """
        image = read_image(path)
        boxes, scores = self.search.boxes(image)
        return BoxRow(key, *image.shape[:2], boxes, scores, np.zeros(len(boxes), dtype=np.int64))


class Answer(NamedTuple):
    """Of one image: its row, or why there is none."""

    key: str
    row: BoxRow | None
    reason: str = ""


@errors_in_one_line(BrokenProcessPool)
def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = with_recipe(parser.parse_args(argv))
    try:
        proposals = proposals_of(args)
    except ValueError as error:
        parser.error(str(error))
    setup_logging()
    logger.info("%s", shlex.join([Path(sys.argv[0]).name, *(argv or sys.argv[1:])]))
    run(args, proposals)


def run(args: argparse.Namespace, proposals: Proposals | EdgeProposals) -> None:
    dataset = load_images(
        args.images,
        split=args.split,
        image_root=args.image_root,
        format=args.format,
        folders=args.folders,
    )
    if len(dataset) == 0:
        raise ValueError(f"{args.images} holds no images")
    if isinstance(proposals, Proposals):
        warn_without_levels()
    info = StoreInfo(
        method=proposals.search.method,
        parameters=proposals.search.parameters,
        image_root=os.path.abspath(dataset.root),
        dataset=dataset.name,
        seed=proposals.seed,
        selection={"top_k": args.top_k or None, "score_threshold": 0.0},
    )
    keys = dataset.keys()
    writer = BoxStoreWriter(args.output, info=info, keys=keys, shard_size=args.shard_size)
    missing = writer.missing_shards()
    logger.info(
        "%s: %d images in %d shards, %d shards to make",
        args.output,
        len(dataset),
        writer.num_shards,
        len(missing),
    )
    write_shards(writer, missing, dataset, proposals, args)
    store = writer.finish()
    if len(store) == 0:
        raise ValueError(f"none of the {len(dataset)} images could be read: {store.skipped}")
    for key, reason in list(store.skipped.items())[:20]:
        logger.warning("skipped %s: %s", key, reason)
    logger.info("%s: %d images, %d skipped", store.path, len(store), len(store.skipped))


def write_shards(
    writer: BoxStoreWriter,
    shards: list[int],
    dataset: DetectionDataset,
    proposals: Proposals | EdgeProposals,
    args: argparse.Namespace,
) -> None:
    """Search the images of the shards, several at a time, and write each shard when it is whole."""
    parts = {shard: writer.shard_slice(shard) for shard in shards}
    images = [index for part in parts.values() for index in range(part.start, part.stop)]
    tasks = [(dataset.key(i), os.path.join(dataset.root, dataset.key(i))) for i in images]
    if isinstance(proposals, EdgeProposals) or args.device == "cpu":
        answers = search_all(tasks, proposals, args.workers)
    else:
        answers = search_batches(tasks, proposals, args.workers, args.device)
    answers = reported(answers, len(tasks))
    for shard, part in parts.items():
        rows, skipped = [], {}
        for answer in (next(answers) for _ in range(part.stop - part.start)):
            if answer.row is not None:
                rows.append(answer.row)
            elif args.on_bad_sample == "error":
                raise BadSampleError(answer.reason)
            else:
                skipped[answer.key] = answer.reason
        writer.write_shard(shard, rows, skipped=skipped)


def search_all(
    tasks: list[tuple[str, str]], proposals: Proposals | EdgeProposals, workers: int
) -> Iterator[Answer]:
    """The answer to each (key, path), in order; in this process when `workers` is 0."""
    if workers == 0:
        yield from (search_one(proposals, *task) for task in tasks)
        return
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    waiting: deque[Future[Answer]] = deque()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=prepare_worker)
    try:
        for task in tasks:
            if len(waiting) >= 8 * workers:
                yield waiting.popleft().result()
            waiting.append(pool.submit(search_one, proposals, *task))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def search_batches(
    tasks: list[tuple[str, str]], proposals: Proposals, workers: int, device: str
) -> Iterator[Answer]:
    """The same on a GPU, many images at a time; `workers` threads read and prepare them."""

    def read(task: tuple[str, str]) -> tuple[tuple[int, int], np.ndarray] | str:
        try:
            return proposals.read(task[1])
        except BadSampleError as error:
            return str(error)

    cv2.setNumThreads(1)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for first in range(0, len(tasks), CUDA_BATCH):
            batch = tasks[first : first + CUDA_BATCH]
            images = list(pool.map(read, batch))
            good = [image for image in images if not isinstance(image, str)]
            searched = proposals.search.search(
                [image for _, image in good], device=device, threads=max(1, workers)
            )
            found = iter(searched)
            for (key, _), image in zip(batch, images, strict=True):
                if isinstance(image, str):
                    yield Answer(key, None, image)
                else:
                    yield Answer(key, proposals.row_of(key, *image, next(found)))


def prepare_worker() -> None:
    """One thread in each process: there are enough images for all cores."""
    cv2.setNumThreads(1)
    setup_logging()
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """A worker whose main process was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def search_one(proposals: Proposals | EdgeProposals, key: str, path: str) -> Answer:
    try:
        return Answer(key, proposals.row(key, path))
    except BadSampleError as error:
        return Answer(key, None, str(error))


def reported(answers: Iterator[Answer], total: int) -> Iterator[Answer]:
    """The same answers; a line in the log now and then."""
    start = last = time.monotonic()
    for done, answer in enumerate(answers, start=1):
        now = time.monotonic()
        if now - last >= REPORT_EVERY or done == total:
            last = now
            rate = done / (now - start)
            logger.info(
                "searched %d of %d images (%.0f%%)  %.1f images/s  ETA %s",
                done,
                total,
                100 * done / total,
                rate,
                datetime.timedelta(seconds=round((total - done) / rate)),
            )
        yield answer


def with_recipe(args: argparse.Namespace) -> argparse.Namespace:
    """The options, with those of the recipe (of EdgeBoxes: its defaults) where none was given."""
    if args.method == "edge_boxes":
        args.resize = args.resize or str(EDGE_MAX_SIDE)
        args.top_k = 30 if args.top_k is None else args.top_k
        return args
    for name, value in RECIPES[args.recipe].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def proposals_of(args: argparse.Namespace) -> Proposals | EdgeProposals:
    """What the options ask for.

    Raises:
        ValueError: an option that is not possible.
    """
    for name in ("workers", "top_k", "seed"):
        if (getattr(args, name) or 0) < 0:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 0")
    if args.method == "edge_boxes":
        return EdgeProposals(search=edge_search_of(args))
    if args.edge_model is not None:
        raise ValueError("--edge-model is for --method edge_boxes")
    search = RegionSearch(
        mode=args.mode,
        resize=args.resize,
        channel_order=args.channel_order,
        base_k=args.base_k,
        inc_k=args.inc_k,
        sigma=args.sigma,
        min_size=args.min_size,
    )
    return Proposals(search=search, seed=args.seed)


def edge_search_of(args: argparse.Namespace) -> EdgeBoxSearch:
    """EdgeBoxes as the options ask for them."""
    given = [name for name in NOT_OF_EDGE_BOXES if getattr(args, name) is not None]
    given += ["recipe"] * (args.recipe != "default") + ["device"] * (args.device != "cpu")
    if given:
        raise ValueError(f"--method edge_boxes goes without --{given[0].replace('_', '-')}")
    if args.resize != "off" and not args.resize.isdecimal():
        raise ValueError(f"--resize takes MAX_SIDE or off with edge_boxes, got {args.resize!r}")
    max_side = None if args.resize == "off" else int(args.resize)
    smoothing = {} if args.sigma is None else {"sigma": args.sigma}
    return EdgeBoxSearch(max_side=max_side, model=args.edge_model, **smoothing)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Any = parser.add_argument
    add("--images", required=True, help="folder of images, or a data set")
    add("--output", required=True, metavar="STORE", help="folder of the box store")
    add("--split", help="split of the data set, for example train")
    add("--image-root", help="where a COCO file's names begin, if not found by itself")
    add("--format", help="format of IMAGES, if it should not be detected")
    add("--folders", metavar="FILE", help="only images in these folders: a name a line")
    methods = ("selective_search", "edge_boxes")
    add("--method", choices=methods, default=methods[0], help="(default: %(default)s)")
    add("--edge-model", metavar="FILE", help="OpenCV's structured forest, for edge_boxes")
    add("--recipe", choices=tuple(RECIPES), default="default", help="(default: %(default)s)")
    add("--mode", choices=("single", "fast", "quality"), help="(default: fast)")
    add("--resize", metavar="SIZE", help="WIDTHxHEIGHT, MAX_SIDE or off (default: 500)")
    add("--channel-order", choices=("rgb", "bgr"), help="bgr swaps red and blue (default: rgb)")
    add("--top-k", type=int, help="boxes used by default, 0: all (default: 30)")
    add("--base-k", type=float, help="first k (default: the mode's)")
    add("--inc-k", type=float, help="step of k (default: 150)")
    add("--sigma", type=float, help="of the smoothing (default: 0.8, with edge_boxes 2)")
    add("--min-size", type=int, help="pixels of a first region (default: 100)")
    add("--seed", type=int, help="of the boxes' order (default: 0)")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    add("--on-bad-sample", choices=("skip", "error"), default="skip", help="(default: skip)")
    add("--shard-size", type=int, help="images a shard (default: by the number of images)")
    return parser


if __name__ == "__main__":
    main()
