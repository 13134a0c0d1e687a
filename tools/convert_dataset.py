#!/usr/bin/env python
"""Write a data set in another format: COCO, PASCAL VOC or YOLO.

    tools/convert_dataset.py --input cells/ --split train val --output cells_coco/ --format coco
    tools/convert_dataset.py --input coco/ --split train2017=train val2017=val \\
        --output coco_yolo/ --format yolo

INPUT is any data set that predet reads. Images are copied, or linked with --link. What a format
cannot hold (crowds, fractions of pixels in VOC) is said in the log.

The job can be killed at any time: the same command completes it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from predet.data.formats import FORMATS, load_dataset
from predet.data.formats.writers import WRITERS, write_dataset
from predet.engine.command_line import errors_in_one_line
from predet.engine.log import setup_logging


@errors_in_one_line()
def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    setup_logging()
    for given in args.split or [None]:
        split, _, name = (given or "").partition("=")
        dataset = load_dataset(
            args.input, split=split or None, image_root=args.image_root, format=args.input_format
        )
        write_dataset(
            dataset, args.output, format=args.format, split=name or split or "train", link=args.link
        )


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--input", required=True, help="a data set")
    add("--output", required=True, metavar="FOLDER", help="may hold other splits already")
    add("--format", required=True, choices=list(WRITERS), help="to write")
    add(
        "--split",
        nargs="*",
        metavar="NAME[=AS]",
        help="splits to convert, and what they are called then; without it the only one, train",
    )
    add("--image-root", help="where file names begin, if not found by itself")
    add("--input-format", choices=list(FORMATS), help="if it should not be detected")
    add("--link", action="store_true", help="link the images instead of copying them")
    return parser


if __name__ == "__main__":
    main()
