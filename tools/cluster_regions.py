#!/usr/bin/env python
"""Classes for the boxes of a store: clusters of what a frozen backbone sees in them.

    tools/cluster_regions.py STORE --output CLUSTERED --images photos/ \\
        --config-file configs/image_domain_folder.py --weights output/.../checkpoints/last.pth

CLUSTERED has the boxes of STORE, with one of --clusters classes each. It feeds AlignDet for
detectors of the DETR family, and whatever takes pseudo-classes. Filter the store first
(tools/box_store.py filter): every box that is stored is described.

The backbone is that of CONFIG's model, with --weights, or its own. --features roi takes them from
one pass over the image (RoIAlign, as AlignDet does), crop cuts every box out: slower, and better
where the map is coarse beside the boxes. The fit (PCA, k-means) is on --sample regions, drawn by
--seed, and is kept as CLUSTERED.clusters.npz: the same command goes on after a kill.
"""

from __future__ import annotations

import argparse
import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import open_dict

from predet.d2 import instantiate
from predet.data.box_store import BoxStore
from predet.data.region_clusters import cluster_store
from predet.data.sources import load_images
from predet.engine.build import backbone_config
from predet.engine.command_line import errors_in_one_line
from predet.engine.config import load_config
from predet.engine.inference import sha256_of
from predet.engine.log import setup_logging
from predet.modeling.images import PIXEL_MEAN, PIXEL_STD
from predet.pretext.region_encoder import RegionEncoder
from predet.pretext.region_features import CropFeatures, RoIAlignFeatures

logger = logging.getLogger("predet.tools.cluster_regions")


@errors_in_one_line()
def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_intermixed_args(argv)
    setup_logging()
    run(args)


def run(args: argparse.Namespace) -> None:
    dataset = load_images(
        args.images, split=args.split, image_root=args.image_root, format=args.format
    )
    describe, about = describer(args)
    store = cluster_store(
        BoxStore(args.store),
        args.output,
        dataset=dataset,
        describe=describe,
        encoder=about,
        num_clusters=args.clusters,
        dimensions=args.dimensions,
        sample=args.sample,
        seed=args.seed,
    )
    sizes = np.zeros(args.clusters, dtype=np.int64)
    for columns in store.shards():
        sizes += np.bincount(columns.classes, minlength=args.clusters)
    parts = np.quantile(sizes, [0, 0.25, 0.5, 0.75, 1]).astype(int)
    logger.info(
        "%s: %d boxes in %d clusters, %d of them empty; sizes %s (least, quartiles, most)",
        store.path,
        sizes.sum(),
        args.clusters,
        (sizes == 0).sum(),
        ", ".join(map(str, parts)),
    )


def describer(args: argparse.Namespace) -> tuple[torch.nn.Module, dict[str, Any]]:
    """What gives the features, and what the store says of it."""
    cfg = load_config(args.config_file, args.opts)
    backbone = copy.deepcopy(backbone_config(cfg))
    with open_dict(backbone):
        if args.weights is not None:
            backbone.weights = args.weights
        if backbone.weights is None:
            backbone.allow_random_frozen = True  # the encoder says whether that may be
    encoder = RegionEncoder(
        backbone=instantiate(backbone),
        allow_random=args.allow_random,
        pixel_mean=cfg.model.get("pixel_mean", PIXEL_MEAN),
        pixel_std=cfg.model.get("pixel_std", PIXEL_STD),
    )
    about = {"features": args.features, "level": args.level, "weights": str(backbone.weights)}
    if backbone.weights is not None and Path(backbone.weights).is_file():
        about["weights"] = f"sha256 {sha256_of(backbone.weights)}"
    if args.features == "roi":
        about["short_side"] = args.short_side
        describe: torch.nn.Module = RoIAlignFeatures(
            encoder=encoder, level=args.level, short_side=args.short_side
        )
    else:
        about["size"] = args.crop_size
        describe = CropFeatures(encoder=encoder, level=args.level, size=args.crop_size)
    return describe.to("cuda" if torch.cuda.is_available() else "cpu"), about


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("store", metavar="STORE", help="the boxes")
    add("--output", required=True, metavar="CLUSTERED", help="folder of the new store")
    add("--images", required=True, help="folder of images, or the data set, of STORE")
    add("--split", help="split of the data set")
    add("--image-root", help="where a COCO file's names begin, if not found by itself")
    add("--format", help="format of IMAGES, if it should not be detected")
    add("--config-file", required=True, metavar="CONFIG", help="whose backbone is taken")
    add("--weights", metavar="FILE", help="of the backbone: a checkpoint or a weights file")
    add("--allow-random", action="store_true", help="accept random weights: a control")
    add("--features", choices=("roi", "crop"), default="roi", help="(default: roi)")
    add("--level", type=int, default=-1, help="of the backbone's maps (default: -1, the last)")
    add("--short-side", type=int, default=640, help="of images, for roi (default: 640)")
    add("--crop-size", type=int, default=128, help="of crops in pixels (default: 128)")
    add("--clusters", type=int, default=256, metavar="K", help="(default: 256)")
    add("--dimensions", type=int, default=256, help="after PCA, at most (default: 256)")
    add("--sample", type=int, default=50_000, help="regions to fit on (default: 50000)")
    add("--seed", type=int, default=0, help="(default: 0)")
    add("opts", nargs="*", metavar="key=value", help="changes to the config")
    return parser


if __name__ == "__main__":
    main()
