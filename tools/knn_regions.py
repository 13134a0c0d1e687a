#!/usr/bin/env python
"""How well a backbone's features tell annotated regions apart, before any detector is trained.

    tools/knn_regions.py --config-file configs/tiny/image_domain.py \\
        --weights output/tiny/image_domain/checkpoints/last.pth \\
        --data datasets/scenes --split train --test-split test

Crops of the annotated boxes of --split are the memory, so many of each class, those of --test-split
the queries; a query gets the class of most of its --k nearest neighbours. Shown is the balanced
accuracy in percent (chance is 100 / classes): for raw pixels, colour histograms, the config's
backbone with random weights, and each of --weights; for every feature map, pooled, by its stride,
and for all of them together. Each number is a mean over --seeds, with the standard deviation: a
seed draws the memory, and the weights of the random backbone.

CONFIG is any that has a model with a backbone; WEIGHTS a checkpoint of a run, of a detector or of
image-domain pre-training, or a weights file that the backbone reads.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, open_dict

from predet.d2 import instantiate
from predet.data.formats import load_dataset
from predet.engine.build import backbone_config
from predet.engine.command_line import errors_in_one_line
from predet.engine.config import load_config
from predet.engine.distributed import seed_all
from predet.engine.log import setup_logging
from predet.evaluation.regions import (
    Regions,
    balanced_accuracy,
    color_histograms,
    encoded,
    knn_classes,
    raw_pixels,
    region_crops,
)
from predet.modeling.images import PIXEL_MEAN, PIXEL_STD, ImageNormalizer

# Names of the feature maps, each with its channels.
Parts = Mapping[str, slice]


@errors_in_one_line()
def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_intermixed_args(argv)
    setup_logging()
    rows = measure(args)
    print(table(rows))
    if args.output:
        Path(args.output).write_text(json.dumps(rows, indent=1) + "\n")


def measure(args: argparse.Namespace) -> list[dict]:
    """One row for each features, part of them and seed: their names and the accuracy."""
    cfg = load_config(args.config_file, args.opts)
    backbone = backbone_config(cfg)
    data, test = (load_dataset(args.data, split=name) for name in (args.split, args.test_split))
    if data.class_names != test.class_names:
        raise ValueError(
            f"{data.name!r} has the classes {data.class_names}, {test.name!r} {test.class_names}"
        )
    draw = {"size": args.size, "max_per_class": args.per_class}
    queries = region_crops(test, **draw, seed=0)
    rows = []
    for seed in range(args.seeds):
        memory = region_crops(data, **draw, seed=seed)
        sources: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Parts]] = {
            "raw pixels": (raw_pixels, {"all": slice(None)}),
            "colour histograms": (color_histograms, {"all": slice(None)}),
            "random backbone": make_encoder(cfg, backbone, None, seed),
        }
        for path in args.weights:
            sources[path] = make_encoder(cfg, backbone, path, seed)
        for name, (describe, parts) in sources.items():
            for part, accuracy in accuracies(describe, parts, memory, queries, args.k).items():
                rows.append({"features": name, "map": part, "seed": seed, "accuracy": accuracy})
    return rows


def accuracies(
    describe: Callable[[np.ndarray], np.ndarray],
    parts: Parts,
    memory: Regions,
    queries: Regions,
    k: int,
) -> dict[str, float]:
    """Balanced accuracy in percent for each part of the features."""
    known, asked = describe(memory.crops), describe(queries.crops)
    return {
        name: 100
        * balanced_accuracy(
            knn_classes(known[:, part], memory.classes, asked[:, part], k=k), queries.classes
        )
        for name, part in parts.items()
    }


def make_encoder(
    cfg: DictConfig, backbone: DictConfig, weights: str | None, seed: int
) -> tuple[Callable[[np.ndarray], np.ndarray], Parts]:
    """Pooled maps of the backbone with these weights; None: random ones, by `seed`."""
    backbone = copy.deepcopy(backbone)
    with open_dict(backbone):
        backbone.weights = weights
        if weights is None:
            backbone.allow_random_frozen = True  # a control
    seed_all(seed)
    network = instantiate(backbone).eval()
    normalizer = ImageNormalizer(
        pixel_mean=cfg.model.get("pixel_mean", PIXEL_MEAN),
        pixel_std=cfg.model.get("pixel_std", PIXEL_STD),
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network, normalizer = network.to(device), normalizer.to(device)

    def encode(crops: torch.Tensor) -> torch.Tensor:
        maps = network(normalizer(list(crops)).pixels)
        return torch.cat([m.mean(dim=(2, 3)) for m in maps], dim=1)

    ends = np.cumsum([0, *network.channels]).tolist()
    parts = {
        f"stride {stride}": slice(start, end)
        for stride, start, end in zip(network.strides, ends[:-1], ends[1:], strict=True)
    }
    return lambda crops: encoded(crops, encode), {**parts, "all": slice(None)}


def table(rows: Sequence[Mapping]) -> str:
    """Mean and standard deviation over the seeds, a line for each features."""
    names = list(dict.fromkeys(row["features"] for row in rows))
    maps = list(dict.fromkeys(row["map"] for row in rows))
    maps.sort(key=lambda name: name == "all")
    width = max(map(len, names))
    lines = [" " * width + "".join(f"{name:>15}" for name in maps)]
    for name in names:
        line = f"{name:<{width}}"
        for part in maps:
            found = [r["accuracy"] for r in rows if (r["features"], r["map"]) == (name, part)]
            spread = np.std(found, ddof=1) if len(found) > 1 else 0.0
            line += f"{f'{np.mean(found):.1f} +- {spread:.1f}' if found else '-':>15}"
        lines.append(line)
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="CONFIG", help="whose backbone is measured")
    add("--weights", action="append", default=[], metavar="FILE", help="may be repeated")
    add("--data", required=True, help="labelled data set")
    add("--split", help="of the memory, for example train")
    add("--test-split", help="of the queries, for example test")
    add("--seeds", type=int, default=3, help="draws of the memory (default: %(default)s)")
    add("--size", type=int, default=64, help="side of the crops in pixels (default: 64)")
    add("--per-class", type=int, default=100, help="regions of a class (default: 100)")
    add("--k", type=int, default=10, help="neighbours (default: 10)")
    add("--output", metavar="FILE", help="write every single number to a JSON file")
    add("opts", nargs="*", metavar="key=value", help="changes to the config")
    return parser


if __name__ == "__main__":
    main()
