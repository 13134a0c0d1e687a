#!/usr/bin/env python
"""Does a UP-DETR model find its patches? Overlap with where they were cut, beside three controls.

    tools/evaluate_patches.py --config-file configs/tiny/updetr.py --weights LAST \\
        --output patches.jsonl data.test.source=SCENES data.test.split=test

For each patch of held-out images (`data.test`) the most confident query of its group is asked for
its box. Controls: patches of other images, the same model untrained (but for its backbone), one box
for all patches (their mean).

Images and patches are drawn anew for each of --seeds. With several --weights, of trainings with
different seeds, the intervals of the table are over trainings, else over these draws, which tells
nothing of other trainings. A row for each training and draw is appended to --output.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from predet.checkpoint import read_checkpoint
from predet.d2 import instantiate
from predet.engine.command_line import errors_in_one_line
from predet.engine.config import load_config
from predet.engine.inference import load_method
from predet.engine.log import setup_logging
from predet.evaluation.statistics import t_interval
from predet.projects.up_detr import cut_patches, with_controls

Row = dict[str, Any]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HEADINGS = {
    "own": "patches of the image itself",
    "swapped": "patches of another image",
    "untrained": "model untrained",
    "mean_box": "one box for all patches",
}


@errors_in_one_line()
def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_intermixed_args(argv)
    setup_logging()
    rows = evaluate(args)
    if args.output:
        with open(args.output, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    print(table(rows))


def evaluate(args: argparse.Namespace) -> list[Row]:
    """A row for each training and draw."""
    cfg = load_config(args.config_file, args.opts)
    models = {
        file: load_method(cfg, read_checkpoint(file), DEVICE, source=file) for file in args.weights
    }
    model = next(iter(models.values()))[0]
    if not hasattr(model, "localize"):
        raise ValueError(f"{args.config_file} has a {type(model).__name__}, which finds no patches")
    dataset = instantiate(cfg.dataloader.test.dataset)
    mapper = instantiate(cfg.dataloader.test.mapper)
    rows = []
    for seed in range(args.seeds):
        batches = list(cut_patches(dataset, mapper, seed=seed, num_images=args.num_images))
        for file, (model, untrained) in models.items():
            measured = with_controls(model, untrained, batches)
            rows.append(
                {
                    "config": args.config_file,
                    "weights": file,
                    "data": dataset.name,
                    "seed": seed,
                    "images": sum(map(len, batches)),
                    "patches": len(measured.own.iou),
                    **{name: found.summary() for name, found in measured._asdict().items()},
                }
            )
    return rows


def table(rows: Sequence[Row]) -> str:
    """Means, and intervals over trainings, or over draws where there is one training."""
    unit = "weights" if len({row["weights"] for row in rows}) > 1 else "seed"
    parts: dict[Any, list[Row]] = {}
    for row in rows:
        parts.setdefault(row[unit], []).append(row)
    over = "trainings" if unit == "weights" else "draws"

    def interval(value: Callable[[Row], float], form: str) -> str:
        found = t_interval([sum(map(value, part)) / len(part) for part in parts.values()])
        reach = f"{found.low:{form}} to {found.high:{form}}" if found.known else "only one"
        return f"{found.mean:{form}}".rjust(8) + reach.rjust(20)

    lines = [f"{'':32}{'IoU':>8}{f'95% of {len(parts)} {over}':>20}{'IoU >= 0.5':>12}{'score':>8}"]
    for name, heading in HEADINGS.items():
        found, score = (
            sum(row[name][key] for row in rows) / len(rows) for key in ("found", "score")
        )
        iou = interval(lambda row, name=name: row[name]["iou"], ".3f")
        lines.append(f"{heading:32}{iou}{100 * found:11.1f}%{score:8.2f}")
    lines.append("patches of the image itself, less")
    for name in list(HEADINGS)[1:]:
        gain = interval(lambda row, name=name: row["own"]["iou"] - row[name]["iou"], "+.3f")
        lines.append(f"  {HEADINGS[name]:30}{gain}")
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="the config that pre-trained it")
    add(
        "--weights",
        required=True,
        action="append",
        metavar="FILE",
        help="its checkpoint, not converted or cut; once for each training",
    )
    add("--output", type=Path, metavar="JSONL", help="where rows are appended")
    add("--num-images", type=int, default=200, help="drawn by seed (default: %(default)s)")
    add("--seeds", type=int, default=3, help="draws of patches (default: %(default)s)")
    add("opts", nargs="*", metavar="key=value", help="changes to the config")
    return parser


if __name__ == "__main__":
    main()
