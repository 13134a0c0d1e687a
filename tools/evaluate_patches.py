#!/usr/bin/env python
"""Does a UP-DETR model find its patches? Overlap with where they were cut, beside three controls.

    tools/evaluate_patches.py --config-file configs/tiny/updetr.py --weights LAST \\
        --output patches.jsonl data.test.source=SCENES data.test.split=test

For each patch of held-out images (`data.test`) the most confident query of its group is asked for
its box. Controls: patches of other images, the same model untrained (but for its backbone), one box
for all patches (their mean). Patches are drawn anew for each of --seeds; a row for each is appended
to --output.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from predet.checkpoint import read_checkpoint
from predet.d2 import instantiate
from predet.engine.config import load_config
from predet.engine.inference import load_method
from predet.engine.log import setup_logging
from predet.evaluation.statistics import t_interval
from predet.projects.up_detr import cut_patches, with_controls

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HEADINGS = {
    "own": "patches of the image itself",
    "swapped": "patches of another image",
    "untrained": "model untrained",
    "mean_box": "one box for all patches",
}


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_intermixed_args(argv)
    setup_logging()
    try:
        rows = evaluate(args)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if args.output:
        with open(args.output, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    print(table(rows))


def evaluate(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each seed."""
    cfg = load_config(args.config_file, args.opts)
    model, untrained = load_method(cfg, read_checkpoint(args.weights), DEVICE)
    if not hasattr(model, "localize"):
        raise ValueError(f"{args.config_file} has a {type(model).__name__}, which finds no patches")
    dataset = instantiate(cfg.dataloader.test.dataset)
    mapper = instantiate(cfg.dataloader.test.mapper)
    rows = []
    for seed in range(args.seeds):
        batches = functools.partial(
            cut_patches, dataset, mapper, seed=seed, num_images=args.num_images
        )
        measured = with_controls(model, untrained, batches)
        rows.append(
            {
                "config": args.config_file,
                "weights": args.weights,
                "data": dataset.name,
                "seed": seed,
                "patches": len(measured.own.iou),
                **{name: found.summary() for name, found in measured._asdict().items()},
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means over the seeds, and how far they reach."""
    lines = [f"{'':32}{'IoU':>8}{'95% of seeds':>18}{'IoU >= 0.5':>12}{'score':>8}"]
    for name, heading in HEADINGS.items():
        iou = t_interval([row[name]["iou"] for row in rows])
        found, score = (
            sum(row[name][key] for row in rows) / len(rows) for key in ("found", "score")
        )
        reach = f"{iou.low:.3f} to {iou.high:.3f}" if iou.known else "one seed"
        lines.append(f"{heading:32}{iou.mean:8.3f}{reach:>18}{100 * found:11.1f}%{score:8.2f}")
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="the config that pre-trained it")
    add("--weights", required=True, metavar="FILE", help="its checkpoint, not converted or cut")
    add("--output", type=Path, metavar="JSONL", help="where rows are appended")
    add("--num-images", type=int, default=200, help="drawn by seed (default: %(default)s)")
    add("--seeds", type=int, default=3, help="draws of patches (default: %(default)s)")
    add("opts", nargs="*", metavar="key=value", help="changes to the config")
    return parser


if __name__ == "__main__":
    main()
