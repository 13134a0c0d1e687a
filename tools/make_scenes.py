#!/usr/bin/env python
"""Draw labelled scenes from a seed: PNG images with a COCO JSON.

    tools/make_scenes.py scenes --num-images 500 --seed 0
    tools/make_scenes.py scenes --split train=400 --split val=100 --num-classes 10

The folder can then be given wherever a data set is asked for.
"""

from __future__ import annotations

import argparse

from predet.data.scene_objects import SCENE_CLASSES
from predet.data.scenes import make_scenes
from predet.engine.command_line import errors_in_one_line


@errors_in_one_line()
def main(argv: list[str] | None = None) -> None:
    parser = make_parser()
    arguments = parser.parse_args(argv)
    for split, count in arguments.split or [(None, arguments.num_images)]:
        try:
            path = make_scenes(
                arguments.output,
                num_images=count,
                image_size=arguments.image_size,
                num_classes=arguments.num_classes,
                seed=arguments.seed,
                split=split,
                max_objects=arguments.max_objects,
                clutter=arguments.clutter,
            )
        except ValueError as error:
            parser.error(str(error))
        print(f"{path}: {count} images")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", help="folder to write to")
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument("--num-images", type=int, help="number of images, in one set")
    amount.add_argument(
        "--split", action="append", type=_parse_split, metavar="NAME=COUNT", help="may be repeated"
    )
    parser.add_argument("--image-size", type=int, default=128, help="pixels (default: %(default)s)")
    parser.add_argument(
        "--num-classes",
        type=int,
        default=6,
        help=f"1 to {len(SCENE_CLASSES)} (default: %(default)s)",
    )
    parser.add_argument("--max-objects", type=int, default=6, help="(default: %(default)s)")
    parser.add_argument(
        "--clutter", type=float, default=1.0, help="amount of non-objects (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    return parser


def _parse_split(text: str) -> tuple[str, int]:
    name, _, count = text.partition("=")
    if not name or not count.isdigit():
        raise argparse.ArgumentTypeError(
            f"expected NAME=COUNT, for example train=400, got {text!r}"
        )
    return name, int(count)


if __name__ == "__main__":
    main()
