#!/usr/bin/env python
"""Whether Selective Search finds OpenCV's boxes, on photographs at several sizes in every mode.

    benchmarks/selective_search_equality.py --images photos/ --output benchmarks/results

Photographs and --images are those of selective_search.py. Takes minutes.
"""

from __future__ import annotations

import argparse

from figures import Figure, main, say
from selective_search import by_opencv, by_predet, images_of, scaled

MODES = ("single", "fast", "quality")


def equality(args: argparse.Namespace) -> Figure:
    """Of how many searches the sets of boxes are the same."""
    images = images_of(args)
    sizes = [int(size) for size in args.sizes.split(",")]
    cells, different = {}, []
    for mode in MODES:
        for size in sizes:
            same = 0
            for name, image in images.items():
                small = scaled(image, size)
                ours, theirs = by_predet(small, mode), by_opencv(small, mode)
                same += ours == theirs
                if ours != theirs:
                    different.append([mode, size, name, len(ours - theirs), len(theirs - ours)])
            cells[f"{mode}_{size}"] = f"{same}/{len(images)}"
            say(f"  {mode:8s}{size:5d}  {same} of {len(images)} the same")
    searches = len(cells) * len(images)
    return {
        "value": searches - len(different),
        "unit": f"of {searches} searches with equal sets",
        "cells": cells,
        "different": different,
    }


if __name__ == "__main__":
    main(__doc__, {"equality": equality}, images=None, count=4, sizes="300,500,800")
