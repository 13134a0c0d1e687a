#!/usr/bin/env python
"""The demonstration: the chain of tools/self_train.py on scenes that predet draws itself.

    tools/demo.py --output output/demo

1200 scenes of 128 pixels with objects of six classes; 200 of them are labelled for the teacher,
all are unlabelled images for the student. 200 further scenes are for the test.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
SPLITS = {"train": 1200, "test": 200}
NUM_LABELED = 200


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="output/demo", help="(default: %(default)s)")
    parser.add_argument("--num-gpus", default="1", help="0: the CPU (default: 1, if there is one)")
    parser.add_argument("--seed", default="0", help="of the scenes (default: 0)")
    args = parser.parse_args()
    scenes = Path(args.output) / "scenes"
    splits = [f"--split={name}={count}" for name, count in SPLITS.items()]
    if not (scenes / "annotations" / "instances_test.json").exists():  # the last to be written
        run("make_scenes.py", str(scenes), *splits, "--seed", args.seed)
    run(
        *("self_train.py", "--output", args.output, "--num-gpus", args.num_gpus),
        *("--labeled", scenes, "--labeled-split", "train", "--num-labeled", NUM_LABELED),
        *("--unlabeled", scenes, "--unlabeled-split", "train"),
        *("--test", scenes, "--test-split", "test"),
        *("--detector-config", "configs/tiny/deformable_detr.py"),
        *("--pretrain-config", "configs/tiny/selftrain.py"),
    )


def run(tool: str, *arguments: object) -> None:
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    status = subprocess.run(command).returncode
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
