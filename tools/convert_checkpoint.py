#!/usr/bin/env python
"""Rename the weights of a published detector, so that predet's configs can start from them.

    tools/convert_checkpoint.py --input detr-r50-e632da11.pth --output weights/detr_r50.pth
    tools/lazyconfig_train_net.py --config-file configs/detr_r50_coco_300ep.py --eval-only \\
        train.init_checkpoint=weights/detr_r50.pth

Known are the authors' files of DETR, Deformable DETR, H-Deformable DETR, UP-DETR and DETReg, and
detectors of Hugging Face transformers (their .safetensors too). Of what a training loop wrote
(model, optimiser, arguments) the model alone is taken. COCO's 91 columns become its 80 classes. A
file that was pre-trained without classes loses its class head: fine-tune from it with
train.reinit=[class_head], or auto.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from predet.checkpoint import read_checkpoint, save_checkpoint
from predet.checkpoint.published import from_published
from predet.engine.command_line import errors_in_one_line


@errors_in_one_line()
def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if args.output.exists():
        raise ValueError(f"{args.output} exists already; remove it or choose another --output")
    state = read_checkpoint(args.input, with_arguments=True)
    try:
        found = from_published(state)
    except ValueError as error:
        raise ValueError(f"{args.input}: {error}") from error
    provenance = {"converted_from": args.input.name, "layout": found.layout}
    if found.class_names:
        provenance["class_names"] = found.class_names
    save_checkpoint(args.output, {"model": found.weights, "provenance": provenance})
    classes = f"{len(found.class_names)} classes of COCO" if found.class_names else "no class names"
    print(f"{found.layout}: {len(found.weights)} tensors, {classes} -> {args.output}")
    if found.left_out:
        print(f"left out ({len(found.left_out)}): {', '.join(found.left_out)}")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, required=True, help="the published file")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint to write (.pth)")
    return parser


if __name__ == "__main__":
    main()
