#!/usr/bin/env python
"""The demonstration: a small comparison on scenes that predet draws itself.

    tools/demo.py --output output/demo

Does self-training help? configs/tiny/compare_demo.py says what is compared. Kill it and run it
again: it goes on. At the end the verdict, and a page to look at.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
SPLITS = {"train": 600, "test": 100}
SCENES = ("--num-classes", "3", "--clutter", "0.5")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="output/demo", help="(default: %(default)s)")
    parser.add_argument("--num-gpus", default="1", help="0: the CPU (default: 1, if there is one)")
    parser.add_argument("--jobs", default=str(min(2, os.cpu_count() or 1)), help="(default: cores)")
    parser.add_argument("--seed", default="0", help="of the scenes (default: 0)")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to the comparison")
    args = parser.parse_args()
    scenes = Path(args.output) / "scenes"
    splits = [f"--split={name}={count}" for name, count in SPLITS.items()]
    if not (scenes / "annotations" / "instances_test.json").exists():  # the last to be written
        run("make_scenes.py", scenes, *SCENES, *splits, "--seed", args.seed)
    run(
        *("compare.py", "--config-file", "configs/tiny/compare_demo.py", "--output", args.output),
        *("--jobs", args.jobs, "--num-gpus", args.num_gpus),
        *(f"data.train.source={scenes}", *args.opts),
    )


def run(tool: str, *arguments: object) -> None:
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    status = subprocess.run(command).returncode
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
