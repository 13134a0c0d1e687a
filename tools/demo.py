#!/usr/bin/env python
"""The demonstration: a small comparison on scenes that predet draws itself.

    tools/demo.py --output output/demo

Does self-training help? configs/tiny/compare_demo.py says what is compared. Kill it and run it
again: it goes on. At the end AP of every arm, the time of each stage, the verdict, a page to look
at, and pictures: detections of teacher and student on test scenes, and their learning curves.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parent
SPLITS = {"train": 600, "test": 100}
SCENES = ("--num-classes", "3", "--clutter", "0.5")


def main() -> None:
    args = make_parser().parse_intermixed_args()
    scenes = Path(args.output) / f"scenes_{args.seed}"
    splits = [f"--split={name}={count}" for name, count in SPLITS.items()]
    if not (scenes / "annotations" / "instances_test.json").exists():  # the last to be written
        run("make_scenes.py", scenes, *SCENES, *splits, "--seed", args.seed)
    run(
        *("compare.py", "--config-file", "configs/tiny/compare_demo.py", "--output", args.output),
        *("--jobs", args.jobs, "--num-gpus", args.num_gpus),
        *(f"data.train.source={scenes}", *args.opts),
    )
    output = Path(args.output)
    found = json.loads((output / "comparison.json").read_text())
    pictures = draw(output, found)
    print(summary(found), *(f"  {path}" for path in pictures), "", sep="\n")


def draw(output: Path, found: dict[str, Any]) -> list[Path]:
    """Pictures of the first seed: the teacher, which is the arm from scratch, and its student."""
    last = {row["arm"]: row["stages"][-1] for row in reversed(found["rows"])}
    folders = {
        "teacher": output / "stages" / last["scratch"],
        "student": output / "stages" / last["self_training"],
    }
    detections, curves = (output / "pictures" / f"{name}.png" for name in ("detections", "curves"))
    run(
        *("visualize.py", "detections", "--output", detections),
        *("--config-file", folders["student"] / "config.resolved.py"),
        *(f"--weights={name}={folder}/checkpoints/last.pth" for name, folder in folders.items()),
    )
    runs = (f"{name}={folder}" for name, folder in folders.items())
    run("visualize.py", "curves", *runs, "--output", curves)
    return [detections, curves, output / "comparison.html"]


def summary(found: dict[str, Any]) -> str:
    """AP and AP50 of every run, seconds of every stage, verdicts."""
    titles = {arm["name"]: arm["title"] for arm in found["arms"]}
    lines = ["", f"{'on the test images':<44}{'seed':>6}{'updates':>9}{'AP':>7}{'AP50':>7}"]
    for row in found["rows"]:
        name, results = titles[row["arm"]], row["results"]
        name += " (the teacher)" * (row["arm"] == "scratch")
        lines.append(
            f"  {name:<42}{row['seed']:>6}{row['updates']:>9}"
            f"{results['AP']:>7.1f}{results['AP50']:>7.1f}"
        )
    lines += ["", "wall time of each stage"]
    lines += [f"  {stage['stage']:<44}{stage['seconds']:>6.0f} s" for stage in found["stages"]]
    lines += ["", *(verdict["sentence"] for verdict in found["verdicts"]), "", "to look at"]
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="output/demo", help="(default: %(default)s)")
    parser.add_argument("--num-gpus", default="1", help="0: the CPU (default: 1, if there is one)")
    parser.add_argument(
        "--jobs", default=str(min(2, os.cpu_count() or 1)), help="at once (default: %(default)s)"
    )
    parser.add_argument("--seed", default="0", help="of the scenes (default: 0)")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to the comparison")
    return parser


def run(tool: str, *arguments: object) -> None:
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    status = subprocess.run(command).returncode
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
