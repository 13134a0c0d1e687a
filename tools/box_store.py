#!/usr/bin/env python
"""Look into a box store, or move boxes between stores and COCO JSON.

    tools/box_store.py show STORE [--key train/0001.jpg]
    tools/box_store.py import boxes.json --output STORE [--images DATASET --split S]
    tools/box_store.py export STORE --output boxes.json [--results --images DATASET --split S]

`import` takes full COCO files (EdgeBoxes, MaskCut, CutLER, other detectors) and lists of results; a
list of results needs --images, the data set that it belongs to. With --images the names in a full
file are found in that data set. `export --results` writes a list of results with its image ids.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import numpy as np

from predet.data.box_store import BoxStore
from predet.data.box_store_coco import export_coco, import_coco
from predet.data.dataset import DetectionDataset
from predet.data.formats import load_dataset

SHOWN = 20


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, KeyError) as error:
        sys.exit(f"error: {error.args[0]}")


def show(args: argparse.Namespace) -> None:
    """What made a store and what is in it, or the boxes of one image."""
    store = BoxStore(args.store, allow_partial=True)
    if args.key is not None:
        row = store[args.key]
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
    print(f"{len(boxes)} images, {boxes.sum()} boxes")
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
    """Make a store of the boxes in a COCO JSON file."""
    store = import_coco(args.source, args.output, dataset=_dataset(args), method=args.method)
    counts = store.meta["counts"]
    print(f"{store.path}: {counts['images']} images, {counts['boxes']} boxes")


def write_out(args: argparse.Namespace) -> None:
    """Write the boxes of a store as COCO JSON."""
    store = BoxStore(args.store)
    dataset = _dataset(args)
    ids = None
    if dataset is not None:
        ids = dict(zip(dataset.keys(), dataset.image_ids.tolist(), strict=True))
    export_coco(store, args.output, results=args.results, image_ids=ids)
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
    commands = parser.add_subparsers(required=True, metavar="show|import|export")

    sub = commands.add_parser("show", help=show.__doc__)
    sub.set_defaults(run=show)
    sub.add_argument("store")
    sub.add_argument("--key", help="show the boxes of this image")

    sub = commands.add_parser("import", help=bring_in.__doc__)
    sub.set_defaults(run=bring_in)
    sub.add_argument("source", metavar="JSON")
    sub.add_argument("--output", required=True, metavar="STORE")
    sub.add_argument("--method", default="coco_json", help="what made the boxes, for the record")
    _add_images(sub)

    sub = commands.add_parser("export", help=write_out.__doc__)
    sub.set_defaults(run=write_out)
    sub.add_argument("store")
    sub.add_argument("--output", required=True, metavar="JSON")
    sub.add_argument("--results", action="store_true", help="a bare list of results")
    _add_images(sub)
    return parser


def _add_images(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--images", metavar="DATASET", help="the data set that the boxes belong to")
    sub.add_argument("--split", help="its split")
    sub.add_argument("--image-root", help="where a COCO file's names begin")
    sub.add_argument("--format", help="its format, if it should not be detected")


if __name__ == "__main__":
    main()
