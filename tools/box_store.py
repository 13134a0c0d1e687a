#!/usr/bin/env python
"""Look into a box store, filter its boxes, or move boxes between stores and COCO JSON.

    tools/box_store.py show STORE [--key train/0001.jpg]
    tools/box_store.py import boxes.json --output STORE [--images DATASET --split S]
    tools/box_store.py export STORE --output boxes.json [--results --images DATASET --split S]
    tools/box_store.py filter STORE --output NEW --recipe soco --nms 0.5 --first 50
    tools/box_store.py filter STORE --output NEW --min-size 16 --aspect 4 --relative 0.02 0.9

`import` takes full COCO files (EdgeBoxes, MaskCut, CutLER, AlignDet's proposals, other detectors)
and lists of results; a list needs --images, the data set that it belongs to. With --images the
names in a full file are found in that data set. --class-agnostic leaves the classes out: results of
CutLER have a category of their own. A FOLDER of .npy files, one an image, is DETReg's cache of
boxes; it needs --images. `export --results` writes a list of results with
its image ids.

`filter` makes a new store of what the filters leave: sides, aspect ratio and relative size, then
non-maximum suppression, then the first K. --recipe soco is AlignDet's "ratio3size0008": 32 pixels,
1/3 to 3, up to 0.8, and less of it for images that nothing is left of.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from predet.data.box_filters import (
    AspectRatio,
    BoxFilter,
    FirstK,
    MinSize,
    NonMaximum,
    RelativeSize,
    filter_store,
    soco_filter,
)
from predet.data.box_store import BoxStore
from predet.data.box_store_coco import export_coco, import_coco
from predet.data.box_store_npy import import_npy
from predet.data.dataset import DetectionDataset
from predet.data.formats import load_dataset
from predet.engine.command_line import errors_in_one_line

SHOWN = 20


@errors_in_one_line()
def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    args.run(args)


def show(args: argparse.Namespace) -> None:
    """What made a store and what is in it, or the boxes of one image."""
    store = BoxStore(args.store, allow_partial=True)
    if args.key is not None:
        try:
            row = store[args.key]
        except KeyError as error:
            raise ValueError(error.args[0]) from error
        names = store.class_names or ("object",)
        print(f"{row.key}: {row.height} x {row.width} pixels, {len(row.scores)} boxes")
        for box, score, label in zip(row.boxes, row.scores, row.classes, strict=True):
            print(f"  {score:.4f}  {names[label]:<20}  {np.round(box, 1).tolist()}")
        return
    about = {name: value for name, value in store.meta.items() if value not in (None, {}, "")}
    teacher = about.get("parameters", {}).pop("teacher_config", None)
    print(json.dumps(about, indent=2))
    if teacher:
        print(f"teacher's config: {len(teacher)} keys, in {store.path / 'meta.json'}")
    sizes = [np.zeros(0, int)]
    scores = [np.zeros(0)]
    for columns in store.shards():
        sizes.append(np.diff(columns.offsets))
        scores.append(columns.scores)
    boxes, score = np.concatenate(sizes), np.concatenate(scores)
    print(
        f"{len(boxes)} images, {boxes.sum()} boxes"
        + " (besides what tells levels of Selective Search)" * store.holds_levels
    )
    if len(score):
        print(
            f"boxes an image: {boxes.min()} to {boxes.max()}, mean {boxes.mean():.1f}, "
            f"without boxes {(boxes == 0).sum()}"
        )
        parts = np.quantile(score, [0, 0.25, 0.5, 0.75, 1])
        print("scores: " + ", ".join(f"{part:.3f}" for part in parts) + " (least, quartiles, best)")
        for threshold in (0.1, 0.3, 0.5, 0.7):
            print(f"  score >= {threshold}: {(score >= threshold).sum() / len(boxes):.2f} an image")
    for key, reason in list(store.skipped.items())[:SHOWN]:
        print(f"skipped {key}: {reason}")


def bring_in(args: argparse.Namespace) -> None:
    """Make a store of the boxes in a COCO JSON file, or of DETReg's cache of boxes."""
    dataset = _dataset(args)
    if Path(args.source).is_dir():
        if dataset is None:
            raise ValueError(f"{args.source} is a folder of .npy files: give --images as well")
        store = import_npy(args.source, args.output, dataset=dataset, method=args.method or "npy")
    else:
        store = import_coco(
            args.source,
            args.output,
            dataset=dataset,
            method=args.method or "coco_json",
            class_agnostic=args.class_agnostic,
        )
    counts = store.meta["counts"]
    print(f"{store.path}: {counts['images']} images, {counts['boxes']} boxes")


def filter_boxes(args: argparse.Namespace) -> None:
    """Make a new store of the boxes that filters leave."""
    store = filter_store(args.store, args.output, filters=filters_of(args))
    counts = store.meta["counts"]
    print(
        f"{store.path}: {counts['images']} images, {counts['boxes']} boxes, "
        f"{counts['images_without_boxes']} images without boxes"
    )


def filters_of(args: argparse.Namespace) -> list[BoxFilter]:
    """What the options ask for, in the order in which it is done."""
    by_shape = (args.min_size, args.aspect, args.relative)
    if args.recipe is not None and by_shape != (None, None, None):
        raise ValueError("--recipe stands in for --min-size, --aspect and --relative")
    filters: list[BoxFilter] = [] if args.recipe is None else [soco_filter()]
    if args.min_size is not None:
        filters.append(MinSize(pixels=args.min_size))
    if args.aspect is not None:
        filters.append(AspectRatio(limit=args.aspect))
    if args.relative is not None:
        filters.append(RelativeSize(low=args.relative[0], high=args.relative[1]))
    if args.nms is not None:
        filters.append(NonMaximum(iou=args.nms))
    if args.first is not None:
        filters.append(FirstK(k=args.first))
    return filters


def write_out(args: argparse.Namespace) -> None:
    """Write the boxes of a store as COCO JSON."""
    store = BoxStore(args.store)
    dataset = _dataset(args)
    ids: dict[str, Mapping[str, int]] = {}
    if dataset is not None:
        ids["image_ids"] = dict(zip(dataset.keys(), dataset.image_ids.tolist(), strict=True))
        ids["category_ids"] = dict(zip(dataset.class_names, dataset.category_ids, strict=True))
    export_coco(store, args.output, results=args.results, **ids)
    print(f"{args.output}: boxes of {len(store)} images")


def _dataset(args: argparse.Namespace) -> DetectionDataset | None:
    if args.images is None:
        return None
    return load_dataset(
        args.images, split=args.split, image_root=args.image_root, format=args.format
    )


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="show|import|export|filter")

    sub = commands.add_parser("show", help=show.__doc__)
    sub.set_defaults(run=show)
    sub.add_argument("store")
    sub.add_argument("--key", help="show the boxes of this image")

    sub = commands.add_parser("import", help=bring_in.__doc__)
    sub.set_defaults(run=bring_in)
    sub.add_argument("source", metavar="JSON|FOLDER")
    sub.add_argument("--output", required=True, metavar="STORE")
    sub.add_argument("--method", help="what made the boxes, for the record")
    sub.add_argument("--class-agnostic", action="store_true", help="all boxes are of one class")
    _add_images(sub)

    sub = commands.add_parser("export", help=write_out.__doc__)
    sub.set_defaults(run=write_out)
    sub.add_argument("store")
    sub.add_argument("--output", required=True, metavar="JSON")
    sub.add_argument("--results", action="store_true", help="a bare list of results")
    _add_images(sub)

    sub = commands.add_parser("filter", help=filter_boxes.__doc__)
    sub.set_defaults(run=filter_boxes)
    sub.add_argument("store")
    sub.add_argument("--output", required=True, metavar="STORE")
    sub.add_argument("--recipe", choices=("soco",), help="sizes and shapes as AlignDet has them")
    sub.add_argument("--min-size", type=float, metavar="PIXELS", help="of both sides")
    sub.add_argument("--aspect", type=float, metavar="R", help="width / height in [1/R, R]")
    sub.add_argument(
        "--relative", type=float, nargs=2, metavar=("LOW", "HIGH"), help="root of box / image area"
    )
    sub.add_argument("--nms", type=float, metavar="IOU", help="drop what overlaps an earlier box")
    sub.add_argument("--first", type=int, metavar="K", help="keep so many")
    return parser


def _add_images(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--images", metavar="DATASET", help="the data set that the boxes belong to")
    sub.add_argument("--split", help="its split")
    sub.add_argument("--image-root", help="where a COCO file's names begin")
    sub.add_argument("--format", help="its format, if it should not be detected")


if __name__ == "__main__":
    main()
