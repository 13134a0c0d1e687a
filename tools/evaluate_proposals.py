#!/usr/bin/env python
"""How well boxes find objects, whatever their class: AP, AP50, AP75 and AR@1/10/30/100 in percent.

    tools/evaluate_proposals.py search --data scenes --split test --resize 128x128 --top-k 30
    tools/evaluate_proposals.py targets --config-file configs/tiny/detreg.py \\
        --data scenes --split test
    tools/evaluate_proposals.py store stores/edges --data scenes --split test
    tools/evaluate_proposals.py checkpoint --config-file configs/tiny/detreg.py \\
        --weights output/tiny/detreg/checkpoints/last.pth --data scenes --split test

The boxes are those of Selective Search, of the box source that a config of pre-training has its
targets from, of a box store, or of a detector, pre-trained or not: one box a query, scored by its
best class. DATA is any labelled data set; all its objects count as one class.

Selective Search has no scores: in an order drawn from a seed, the n boxes that are taken score
1 - rank / n. Shown is the mean over --orders orders with the standard deviation, for each size of
--resize and each number of --top-k (0: all). The default search is DETReg's. A store of Selective
Search is measured so, too, and so are targets, as many and in the order as training draws them.
Several --weights, of trainings with different seeds, get a line each and one of their mean with
the standard deviation.

A config of pre-training may have no test-time resizing; then --short-side and --max-side say it.
--output appends one JSON object for each line of the table.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from omegaconf import OmegaConf

from predet.checkpoint import read_checkpoint
from predet.d2 import instantiate
from predet.data.box_sources import AnnotatedBoxes, BoxSource
from predet.data.box_store import BoxStore
from predet.data.dataset import DetectionDataset
from predet.data.images import BadSampleError, read_image
from predet.data.loader import build_test_loader
from predet.data.region_search import RegionSearch, warn_without_levels
from predet.data.sources import load_images
from predet.engine.command_line import MixedParser, add_test_time_size, errors_in_one_line
from predet.engine.config import load_config
from predet.engine.inference import inference_mapper, load_trained, sha256_of
from predet.engine.log import setup_logging
from predet.evaluation.average_precision import ImageDetections
from predet.evaluation.proposals import (
    METRICS,
    boxes_in_order,
    boxes_of_detector,
    boxes_of_regions,
    boxes_of_store,
    check_store,
    proposal_metrics,
)
from predet.ops.selective_search import Regions, from_rows
from predet.version import __version__

logger = logging.getLogger("predet.tools.evaluate_proposals")

Row = dict[str, Any]


@errors_in_one_line()
def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    if min(getattr(args, "top_k", [0])) < 0:
        parser.error(f"--top-k must be at least 0, got {args.top_k}")
    if getattr(args, "orders", 1) < 1:
        parser.error(f"--orders must be at least 1, got {args.orders}")
    setup_logging()
    dataset = load_images(
        args.data,
        split=args.split,
        image_root=args.image_root,
        format=args.format,
        num_images=args.num_images,
    )
    rows = list(args.run(args, dataset))
    about = {
        "data": dataset.name,
        "images": len(dataset),
        "objects": int((~dataset.iscrowd).sum()),
        "version": __version__,
    }
    if args.output:
        with open(args.output, "a") as file:
            file.writelines(json.dumps({**row, **about}) + "\n" for row in rows)
    print("{data}: {objects} objects in {images} images".format(**about))
    print(table(rows))


def of_search(args: argparse.Namespace, dataset: DetectionDataset) -> Iterator[Row]:
    """Boxes of Selective Search, searched now."""
    warn_without_levels()
    cv2.setNumThreads(1)
    searches = [
        RegionSearch(
            mode=args.mode,
            resize=resize,
            channel_order=args.channel_order,
            base_k=args.base_k,
            min_size=args.min_size,
        )
        for resize in args.resize
    ]
    for search in searches:
        about = {"boxes": f"{search.method} {search.resize}", "parameters": search.parameters}
        yield from of_orders(args, dataset, searched(search, dataset), about)


def searched(search: RegionSearch, dataset: DetectionDataset) -> dict[int, Regions]:
    """Regions by image id; an image that cannot be searched has none."""
    regions = {}
    for record in (dataset[index] for index in range(len(dataset))):
        try:
            regions[record.image_id] = search.regions(read_image(record.path), name=record.path)
        except BadSampleError as error:
            logger.warning("no boxes: %s", error)
    return regions


def of_targets(args: argparse.Namespace, dataset: DetectionDataset) -> Iterator[Row]:
    """Boxes that pre-training by a config would have as targets in these images."""
    cfg = load_config(args.config_file, args.opts)
    boxes = OmegaConf.select(cfg, "dataloader.train.mapper.boxes")
    if boxes is None:
        raise ValueError(f"{args.config_file} has no box source at dataloader.train.mapper.boxes")
    source = instantiate(boxes)
    if isinstance(source, AnnotatedBoxes):
        raise ValueError(
            f"{args.config_file} has as targets what its data set comes with, people's boxes or a "
            "store's, and none that are found in images; of a store: evaluate_proposals.py store"
        )
    source.check(dataset)
    cv2.setNumThreads(1)
    found = [targets(source, dataset, seed) for seed in range(args.orders)]
    about = {"boxes": f"targets of {args.config_file}", "parameters": {"opts": args.opts}}
    count = {"top_k": source.num_boxes or 0, "orders": args.orders}
    yield {**about, "config": args.config_file, **count, **measured(dataset, found)}


def targets(source: BoxSource, dataset: DetectionDataset, seed: int) -> list[ImageDetections]:
    """The boxes that a source gives of each image, in its order."""
    found = []
    for record in (dataset[index] for index in range(len(dataset))):
        try:
            rng = np.random.default_rng((seed, record.image_id))
            boxes, _ = source(read_image(record.path), record, rng)
        except BadSampleError as error:
            logger.warning("no boxes: %s", error)
            continue
        found.append(boxes_in_order(record.image_id, boxes))
    return found


def of_store(args: argparse.Namespace, dataset: DetectionDataset) -> Iterator[Row]:
    """Boxes of a store."""
    store = BoxStore(args.store)
    about = {"boxes": str(store.path), "parameters": {"method": store.meta["method"]}}
    if store.holds_levels:
        check_store(dataset, store)
        rows = {
            int(dataset.image_ids[index]): store.with_levels(key)
            for index, key in enumerate(dataset.keys())
            if key in store
        }
        regions = {number: from_rows(row.boxes, row.scores) for number, row in rows.items()}
        yield from of_orders(args, dataset, regions, about)
        return
    for top_k in args.top_k:
        found = boxes_of_store(dataset, store, top_k=top_k or None)
        yield {**about, "top_k": top_k, **measured(dataset, [found])}


def of_checkpoint(args: argparse.Namespace, dataset: DetectionDataset) -> Iterator[Row]:
    """Boxes of a detector, one a query."""
    cfg = load_config(args.config_file, args.opts)
    device = torch.device(args.device)
    loader = build_test_loader(
        dataset=dataset,
        mapper=inference_mapper(cfg, short_side=args.short_side, max_side=args.max_side),
        batch_size=args.batch_size,
        num_workers=args.num_workers,
    )
    detectors = [
        load_trained(cfg, read_checkpoint(file), device, source=file) for file in args.weights
    ]
    found = []
    for file, detector in zip(args.weights, detectors, strict=True):
        found.append(boxes_of_detector(detector, loader))
        about = {"boxes": file, "parameters": {"sha256": sha256_of(file)}}
        yield {**about, "config": args.config_file, "top_k": 0, **measured(dataset, found[-1:])}
    if len(found) > 1:
        about = {"boxes": f"mean of {len(found)} trainings", "parameters": {"of": args.weights}}
        yield {**about, "config": args.config_file, "top_k": 0, **measured(dataset, found)}


def of_orders(
    args: argparse.Namespace,
    dataset: DetectionDataset,
    regions: Mapping[int, Regions],
    about: Row,
) -> Iterator[Row]:
    """A row for each number of regions, over several orders."""
    for top_k in args.top_k:
        found = [
            boxes_of_regions(regions, top_k=top_k or None, seed=seed) for seed in range(args.orders)
        ]
        yield {**about, "top_k": top_k, "orders": args.orders, **measured(dataset, found)}


def measured(dataset: DetectionDataset, found: Sequence[Sequence[ImageDetections]]) -> Row:
    """Mean of each metric, and the standard deviation where there are several orders or models."""
    metrics = [proposal_metrics(dataset, one) for one in found]
    row: Row = {
        "boxes_per_image": sum(len(image.scores) for image in found[0]) / len(dataset),
        **{name: float(np.mean([each[name] for each in metrics])) for name in METRICS},
    }
    if len(metrics) > 1:
        row["deviation"] = {
            name: float(np.std([each[name] for each in metrics], ddof=1)) for name in METRICS
        }
    return row


def table(rows: Sequence[Row]) -> str:
    """A line for each row: the mean, and the standard deviation where the row has one."""
    names = [
        f"{row['boxes']}, first {row['top_k']}" if row["top_k"] else row["boxes"] for row in rows
    ]
    width = max(map(len, names))
    heads = ["boxes", *(name.replace("AR", "AR@") for name in METRICS)]
    lines = [" " * width + f"{heads[0]:>8}" + "".join(f"{head:>14}" for head in heads[1:])]
    for name, row in zip(names, rows, strict=True):
        line = f"{name:<{width}}{row['boxes_per_image']:>8.1f}"
        for metric in METRICS:
            spread = f" +-{row['deviation'][metric]:.2f}" if "deviation" in row else ""
            line += f"{f'{row[metric]:.2f}{spread}':>14}"
        lines.append(line)
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(
        required=True, metavar="search|targets|store|checkpoint", parser_class=MixedParser
    )

    sub = commands.add_parser("search", help=of_search.__doc__)
    sub.set_defaults(run=of_search)
    add: Any = sub.add_argument
    add("--mode", choices=("single", "fast", "quality"), default="fast", help="(default: fast)")
    add(
        "--resize",
        nargs="+",
        default=["128x128"],
        metavar="SIZE",
        help="WIDTHxHEIGHT, MAX_SIDE or off (default: 128x128)",
    )
    add("--channel-order", choices=("rgb", "bgr"), default="bgr", help="(default: bgr)")
    add("--base-k", type=float, help="first k (default: the mode's)")
    add("--min-size", type=int, default=100, help="pixels of a first region (default: 100)")
    _add_common(sub)
    _add_orders(sub)

    sub = commands.add_parser("targets", help=of_targets.__doc__)
    sub.set_defaults(run=of_targets)
    add = sub.add_argument
    add("--config-file", required=True, metavar="FILE", help="a config of pre-training")
    add("opts", nargs="*", metavar="key=value", help="changes to the config")
    _add_common(sub)
    _add_draws(sub)

    sub = commands.add_parser("store", help=of_store.__doc__)
    sub.set_defaults(run=of_store)
    sub.add_argument("store")
    _add_common(sub)
    _add_orders(sub)

    sub = commands.add_parser("checkpoint", help=of_checkpoint.__doc__)
    sub.set_defaults(run=of_checkpoint)
    add = sub.add_argument
    add("--config-file", required=True, metavar="FILE", help="that the checkpoint was trained with")
    add(
        "--weights",
        required=True,
        action="append",
        metavar="FILE",
        help="its checkpoint; once for each training",
    )
    add_test_time_size(add)
    add("--batch-size", type=int, default=8, help="images at once (default: %(default)s)")
    add("--num-workers", type=int, default=2, help="processes that read (default: %(default)s)")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=default, help="(default: %(default)s)")
    add("opts", nargs="*", metavar="key=value", help="changes to the config")
    _add_common(sub)
    return parser


def _add_common(sub: argparse.ArgumentParser) -> None:
    add: Any = sub.add_argument
    add("--data", required=True, help="labelled data set")
    add("--split", help="its split")
    add("--image-root", help="where a COCO file's names begin")
    add("--format", help="its format, if it should not be detected")
    add("--num-images", type=int, help="draw so many images (default: all)")
    add("--output", metavar="FILE", help="append one JSON object for each line of the table")


def _add_orders(sub: argparse.ArgumentParser) -> None:
    add: Any = sub.add_argument
    add("--top-k", type=int, nargs="+", default=[0], help="boxes of an image, 0: all (default: 0)")
    _add_draws(sub)


def _add_draws(sub: argparse.ArgumentParser) -> None:
    add: Any = sub.add_argument
    add("--orders", type=int, default=3, help="draws of the order (default: 3)")


if __name__ == "__main__":
    main()
