#!/usr/bin/env python
"""Label images with a trained detector: the boxes, classes and scores go into a box store.

    tools/pseudo_label.py --config-file configs/tiny/deformable_detr.py --weights teacher.pth \\
        --images photos/ --output stores/photos --num-gpus 0

IMAGES is a folder of images or any data set that predet reads (with --split where it has splits);
its annotations, if any, are used for the report only. Of each query the best class is taken; boxes
that overlap a better one by more than --nms-iou are duplicates, whatever their class; the best
--keep of an image are stored with their scores.

Which of the stored boxes become targets is chosen when the store is read: score >= threshold, then
the best top-k. --score-threshold and --top-k are the store's defaults for that (30 boxes is the
paper's count); a config may choose others, up to --keep, without running the teacher again. Running
this command again with other values of these two changes the defaults and nothing else.

The job can be killed at any time: the same command goes on with the shards that are missing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from predet.checkpoint import read_checkpoint
from predet.d2 import comm
from predet.d2.embedded.launch import launch
from predet.data.box_store import BoxStore
from predet.data.box_store_writer import BoxStoreWriter, StoreInfo
from predet.data.dataset import DetectionDataset
from predet.data.pseudo_labels import pseudo_labelled
from predet.data.sources import load_images
from predet.engine.build import choose_device
from predet.engine.command_line import add_test_time_size, errors_in_one_line
from predet.engine.config import load_config
from predet.engine.config_text import flatten
from predet.engine.inference import (
    inference_mapper,
    load_trained,
    sha256_of,
    trained_classes,
)
from predet.engine.log import setup_logging
from predet.evaluation.box_quality import store_quality
from predet.projects.self_training.labelling import label_shards

logger = logging.getLogger("predet.tools.pseudo_label")

REPORT_EVERY = 10.0  # seconds
REPORTED_COUNTS = (30, 60, 100)
PROCESS_TIMEOUT = datetime.timedelta(days=1)  # one process may have much more to do than another


@errors_in_one_line()
def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_intermixed_args(argv)
    for name, least in (("batch_size", 1), ("keep", 0), ("top_k", 0), ("num_workers", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}")
    if args.keep and args.top_k > args.keep:
        parser.error(f"--top-k {args.top_k} needs more boxes than --keep {args.keep} stores")
    if args.nms_iou is not None and not 0 < args.nms_iou <= 1:
        parser.error(f"--nms-iou must be in (0, 1] or 'off', got {args.nms_iou}")
    setup_logging()
    logger.info("%s", shlex.join([Path(sys.argv[0]).name, *(argv or sys.argv[1:])]))
    launch(
        run,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
        timeout=PROCESS_TIMEOUT,
    )


@errors_in_one_line()
def run(args: argparse.Namespace) -> None:
    """One process of the job."""
    setup_logging(None, comm.get_rank())
    cfg = load_config(args.config_file, args.opts)
    dataset = load_images(
        args.images,
        split=args.split,
        image_root=args.image_root,
        format=args.format,
        folders=args.folders,
    )
    if len(dataset) == 0:
        raise ValueError(f"{args.images} holds no images")
    state = read_checkpoint(args.weights)
    mapper = inference_mapper(cfg, short_side=args.short_side, max_side=args.max_side)
    writer = open_writer(args, cfg, dataset, trained_classes(cfg, state))
    missing = comm.all_gather(writer.missing_shards())[0]
    logger.info(
        "%s: %d images in %d shards, %d shards to make",
        args.output,
        len(dataset),
        writer.num_shards,
        len(missing),
    )
    own = missing[comm.get_rank() :: comm.get_world_size()]
    if own:
        device = choose_device("cuda", args.num_gpus)
        detector = load_trained(cfg, state, device, source=args.weights)
        progress = label_shards(
            detector,
            dataset,
            writer,
            own,
            mapper=mapper,
            batch_size=args.batch_size,
            num_workers=args.num_workers,
            nms_iou=args.nms_iou,
            keep=args.keep or None,
            on_bad_sample=args.on_bad_sample,
        )
        slices = [writer.shard_slice(shard) for shard in own]
        show_progress(progress, sum(part.stop - part.start for part in slices))
    comm.synchronize()
    if comm.is_main_process():
        store = writer.finish()
        if len(store) == 0:
            raise ValueError(f"none of the {len(dataset)} images could be read: {store.skipped}")
        report(store, dataset)


def open_writer(
    args: argparse.Namespace, cfg: DictConfig, dataset: DetectionDataset, names: tuple[str, ...]
) -> BoxStoreWriter:
    """The store to write, begun by the main process, the same for all."""
    settings = flatten(cfg)
    sizes = {"short_side": args.short_side, "max_side": args.max_side}
    info = StoreInfo(
        method="pseudo_label",
        parameters={
            "nms_iou": args.nms_iou,
            "keep": args.keep or None,
            **(sizes if args.short_side is not None else {}),
            "teacher_config": {
                key: value
                for key, value in settings.items()
                if key.startswith(("model.", "dataloader.test.mapper."))
            },
        },
        class_names=names,
        image_root=os.path.abspath(dataset.root),
        dataset=dataset.name,
        teacher={
            "sha256": sha256_of(args.weights),
            "weights": Path(args.weights).name,
            "config": Path(args.config_file).name,
        },
        selection={"top_k": args.top_k or None, "score_threshold": args.score_threshold},
    )
    keys = dataset.keys()
    for turn in (True, False):  # the main process makes it, then the others find it
        if comm.is_main_process() is turn:
            writer = BoxStoreWriter(args.output, info=info, keys=keys, shard_size=args.shard_size)
        comm.synchronize()
    return writer


def show_progress(progress: Any, total: int) -> None:
    """A line now and then: how much of this process's share is done, and how long it will take."""
    start = last = time.monotonic()
    done = 0
    for count in progress:
        done += count
        now = time.monotonic()
        if now - last >= REPORT_EVERY or done == total:
            last = now
            rate = done / (now - start)
            logger.info(
                "labelled %d of %d images (%.0f%%)  %.1f images/s  ETA %s%s",
                done,
                total,
                100 * done / total,
                rate,
                datetime.timedelta(seconds=round((total - done) / rate)),
                f"  (one of {comm.get_world_size()} processes)" * (comm.get_world_size() > 1),
            )


def report(store: BoxStore, dataset: DetectionDataset) -> None:
    """Say what is in the store and how good it is; also kept as `report.json` beside the boxes."""
    counts, selection = store.meta["counts"], store.meta["selection"]
    logger.info(
        "%s: %d images, %d boxes (%.1f an image), %d images without boxes, %d skipped",
        store.path,
        counts["images"],
        counts["boxes"],
        counts["boxes"] / max(counts["images"], 1),
        counts["images_without_boxes"],
        counts["skipped"],
    )
    for key, reason in list(store.skipped.items())[:20]:
        logger.warning("skipped %s: %s", key, reason)
    chosen = pseudo_labelled(dataset, store=store)
    content: dict[str, Any] = {
        "counts": counts,
        "selection": {**selection, "boxes": len(chosen.boxes)},
        "boxes_per_image": len(chosen.boxes) / max(len(chosen), 1),
        "quality": [],
    }
    if len(dataset.boxes):
        results = store_quality(
            store,
            dataset,
            top_k=REPORTED_COUNTS,
            score_threshold=selection["score_threshold"],
        )
        content["quality"] = [
            {name: None if math.isnan(value) else value for name, value in result._asdict().items()}
            for result in results
        ]
        logger.info("against the annotations, IoU 0.5:")
        for r in results:
            logger.info(
                "best %3d (%5.1f an image)  precision %5.1f%%  recall %5.1f%%  "
                "whatever the class: precision %5.1f%%  recall %5.1f%%",
                r.top_k,
                r.boxes_per_image,
                100 * r.precision,
                100 * r.recall,
                100 * r.precision_any_class,
                100 * r.recall_any_class,
            )
    temporary = store.path / ".report.json.tmp"
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, store.path / "report.json")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="the teacher's config")
    add("--weights", required=True, metavar="FILE", help="the teacher's checkpoint")
    add("--images", required=True, help="folder of images, or a data set")
    add("--output", required=True, metavar="STORE", help="folder of the box store")
    add("--split", help="split of the data set, for example train")
    add("--image-root", help="where a COCO file's names begin, if not found by itself")
    add("--format", help="format of IMAGES, if it should not be detected")
    add("--folders", metavar="FILE", help="only images in these folders: a name a line")
    add_test_time_size(add)
    add("--batch-size", type=int, default=8, help="images at once (default: %(default)s)")
    add("--num-workers", type=int, default=2, help="processes that read (default: %(default)s)")
    add("--nms-iou", type=_number_or_off, default=0.9, help="or 'off' (default: %(default)s)")
    add("--keep", type=int, default=100, help="boxes stored of an image, 0: all (default: 100)")
    add("--top-k", type=int, default=30, help="boxes used by default, 0: all (default: 30)")
    add("--score-threshold", type=float, default=0.0, help="by default (default: %(default)s)")
    add("--on-bad-sample", choices=("skip", "error"), default="skip", help="(default: skip)")
    add("--shard-size", type=int, help="images a shard (default: by the number of images)")
    add("--num-gpus", type=int, default=1, help="processes on this machine (default: 1)")
    add("--num-machines", type=int, default=1)
    add("--machine-rank", type=int, default=0)
    add("--dist-url", default="auto", help="tcp://HOST:PORT of machine 0")
    add("opts", nargs="*", metavar="key=value", help="changes to the teacher's config")
    return parser


def _number_or_off(text: str) -> float | None:
    return None if text == "off" else float(text)


if __name__ == "__main__":
    main()
