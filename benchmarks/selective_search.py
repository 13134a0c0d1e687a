#!/usr/bin/env python
"""Selective Search against OpenCV's, one thread each, on photographs.

    benchmarks/selective_search.py --images photos/ --output benchmarks/results
    benchmarks/selective_search.py --equality --images photos/ --output benchmarks/results

Photographs are those that come with scikit-image and matplotlib, and up to --count of each folder
given with --images, scaled so that the longer side has the size of the figure. Both sides start
from the same array and include colour conversion and smoothing; they take turns. Times are
processor times, which other programs disturb less; the ratio of wall times is given besides.

Figures, one JSON line each: fast_500, fast_1200, quality_500 (times OpenCV's speed), growth (the
exponent of time in pixels), peak_memory (bytes a pixel), imagenet_hours (1.28 million images at
500 pixels on 64 cores), tool_images_per_second (tools/extract_proposals.py, one worker).

--equality compares the sets of boxes instead: all photographs, three sizes, three modes.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import matplotlib.cbook
import numpy as np

from predet.ops import extension
from predet.ops.selective_search import selective_search

SCIKIT_IMAGE = (
    "astronaut.png", "motorcycle_left.png", "retina.jpg", "coffee.png", "chelsea.png",
    "rocket.jpg", "hubble_deep_field.jpg", "ihc.png", "camera.png", "coins.png",
)  # fmt: skip
MODES = ("single", "fast", "quality")
IMAGENET_IMAGES, CORES = 1_281_167, 64
TARGETS = {"fast_500": 8.0, "fast_1200": 8.0, "quality_500": 8.0}


def photographs(folders: list[Path], count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Names and (H, W, 3) uint8 RGB images."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        print("scikit-image is not installed; its photographs are left out", file=sys.stderr)
    else:
        data = Path(found.origin).parent / "data"
        yield from ((name, read(data / name)) for name in SCIKIT_IMAGE if (data / name).exists())
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        yield "grace_hopper.jpg", read(Path(file.name))
    for folder in folders:
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".png"))
        yield from ((f"{folder.name}/{path.name}", read(path)) for path in files[:count])


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise ValueError(f"{path} is no image")
    return image


def scaled(image: np.ndarray, size: int) -> np.ndarray:
    scale = size / max(image.shape[:2])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=how)


def by_opencv(image: np.ndarray, mode: str) -> set[tuple[int, ...]]:
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if mode == "single":
        search.switchToSingleStrategy()
    elif mode == "fast":
        search.switchToSelectiveSearchFast()
    else:
        search.switchToSelectiveSearchQuality()
    boxes = search.process().astype(int)
    boxes[:, 2:] += boxes[:, :2]
    return set(map(tuple, boxes.tolist()))


def by_predet(image: np.ndarray, mode: Any) -> set[tuple[int, ...]]:
    return set(map(tuple, selective_search(image, mode=mode).boxes.astype(int).tolist()))


def timed(function: Callable[[], Any]) -> tuple[float, float, Any]:
    """Processor seconds, wall seconds, result."""
    processor, wall = time.process_time(), time.perf_counter()
    result = function()
    return time.process_time() - processor, time.perf_counter() - wall, result


def compare(images: dict[str, np.ndarray], mode: str, size: int, repeats: int) -> dict[str, Any]:
    """Medians over images of the best of `repeats` turns."""
    rows = []
    for name, image in images.items():
        image = scaled(image, size)
        turns = []
        for turn in range(repeats):
            ours = timed(lambda image=image: by_predet(image, mode))
            # OpenCV's time varies little and is long: two turns are enough.
            theirs = timed(lambda image=image: by_opencv(image, mode)) if turn < 2 else None
            turns.append((ours, theirs))
        ours = [min(o[i] for o, _ in turns) for i in range(2)]
        theirs = [min(t[i] for _, t in turns if t) for i in range(2)]
        equal = all(t is None or o[2] == t[2] for o, t in turns)
        rows.append((ours, theirs, equal, len(turns[0][0][2])))
        print(
            f"  {mode:8s}{size:5d}  {name:32s} OpenCV {theirs[0]:7.3f} s  predet {ours[0]:7.4f} s"
            f"  {theirs[0] / ours[0]:5.1f}x (wall {theirs[1] / ours[1]:5.1f}x)"
            f"  {rows[-1][3]:6d} boxes, {'the same' if equal else 'DIFFERENT'}",
            flush=True,
        )
    ratios = sorted(theirs[0] / ours[0] for ours, theirs, _, _ in rows)
    return {
        "value": round(statistics.median(ratios), 2),
        "unit": "times OpenCV's speed",
        "lowest": round(ratios[0], 2),
        "highest": round(ratios[-1], 2),
        "wall": round(statistics.median(theirs[1] / ours[1] for ours, theirs, _, _ in rows), 2),
        "predet_seconds": round(statistics.median(ours[0] for ours, _, _, _ in rows), 4),
        "opencv_seconds": round(statistics.median(theirs[0] for _, theirs, _, _ in rows), 4),
        "images": len(rows),
        "equal_sets": sum(equal for _, _, equal, _ in rows),
    }


def growth(images: dict[str, np.ndarray]) -> dict[str, Any]:
    """Exponent of time in pixels, by a line through the logarithms of each image."""
    exponents = []
    for image in images.values():
        points = []
        for size in (300, 500, 800, 1200):
            small = scaled(image, size)
            seconds = min(timed(lambda small=small: by_predet(small, "fast"))[0] for _ in range(3))
            points.append((np.log(small.shape[0] * small.shape[1]), np.log(seconds)))
        exponents.append(np.polyfit(*np.transpose(points), 1)[0])
    return {"value": round(statistics.median(exponents), 3), "unit": "exponent", "mode": "fast"}


MEASURE = """
import os, resource, sys
import cv2, numpy as np
sys.path.insert(0, {here!r})
import selective_search as benchmark
cv2.setNumThreads(1)
image = np.load({file!r})
search = getattr(benchmark, {which!r})
peak = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
search(image[:64, :64], {mode!r})
pages = int(open("/proc/self/statm").read().split()[1])
ballast = np.ones(max(0, peak() - pages * os.sysconf("SC_PAGE_SIZE")), np.uint8)
before = peak()
search(image, {mode!r})
print((peak() - before) / (image.shape[0] * image.shape[1]))
"""


def peak_memory(image: np.ndarray, mode: str) -> dict[str, Any]:
    """Of one search of a photograph at 1200 pixels, in a process of its own."""
    used = {}
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "image.npy"))
        np.save(file, scaled(image, 1200))
        for which in ("by_predet", "by_opencv"):
            here = str(Path(__file__).parent)
            code = MEASURE.format(here=here, file=file, which=which, mode=mode)
            answer = subprocess.run(
                [sys.executable, "-c", code], check=True, capture_output=True, text=True
            )
            used[which] = round(float(answer.stdout))
    return {"value": used["by_predet"], "unit": "bytes a pixel", "mode": mode, "size": 1200,
            "opencv_bytes": used["by_opencv"]}  # fmt: skip


def tool_speed(images: dict[str, np.ndarray], copies: int) -> dict[str, Any]:
    """tools/extract_proposals.py on JPEG files of 500 pixels, without the start of its process."""
    path = Path(__file__).parents[1] / "tools" / "extract_proposals.py"
    spec = importlib.util.spec_from_file_location("extract_proposals", path)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = tool
    spec.loader.exec_module(tool)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "images")
        source.mkdir()
        for copy in range(copies):
            for number, image in enumerate(images.values()):
                small = cv2.cvtColor(scaled(image, 500), cv2.COLOR_RGB2BGR)
                cv2.imwrite(str(source / f"{copy}-{number}.jpg"), small)
        options = ["--images", str(source), "--output", str(Path(folder, "store"))]
        processor, wall, _ = timed(lambda: tool.main([*options, "--workers", "0"]))
    count = copies * len(images)
    return {"value": round(count / processor, 2), "unit": "images a second", "workers": 1,
            "size": 500, "wall": round(count / wall, 2), "images": count}  # fmt: skip


def equality(images: dict[str, np.ndarray], sizes: list[int]) -> dict[str, Any]:
    """On how many photographs the sets of boxes are the same."""
    cells, different = {}, []
    for mode in MODES:
        for size in sizes:
            same = boxes = 0
            for name, image in images.items():
                small = scaled(image, size)
                ours, theirs = by_predet(small, mode), by_opencv(small, mode)
                same += ours == theirs
                boxes += len(theirs)
                if ours != theirs:
                    different.append([mode, size, name, len(ours - theirs), len(theirs - ours)])
            cells[f"{mode}_{size}"] = f"{same}/{len(images)}"
            print(
                f"  {mode:8s}{size:5d}  {same} of {len(images)} the same ({boxes} boxes)",
                flush=True,
            )
    total = sum(int(cell.split("/")[0]) for cell in cells.values())
    return {"value": total, "unit": f"of {len(cells) * len(images)} searches with equal sets",
            "cells": cells, "different": different}  # fmt: skip


def machine() -> dict[str, Any]:
    return {
        "date": datetime.date.today().isoformat(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "opencv": cv2.__version__,
        "compiler": extension.build_info().get("compiler", ""),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, action="append", default=[], metavar="FOLDER")
    parser.add_argument("--count", type=int, default=4, help="photographs of each folder")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--equality", action="store_true")
    parser.add_argument("--sizes", type=int, nargs="+", default=[300, 500, 800])
    parser.add_argument("--output", type=Path, help="folder for the results file")
    args = parser.parse_args()
    if not extension.available("selective_search"):
        sys.exit("the native extension is not built: there is nothing to compare")
    logging.getLogger().setLevel(logging.WARNING)
    cv2.setNumThreads(1)
    images = dict(photographs(args.images, args.count))
    few = dict(list(images.items())[:3])
    if args.equality:
        figures = {"equality": equality(images, args.sizes)}
    else:
        figures = {
            "fast_500": compare(images, "fast", 500, args.repeats),
            "fast_1200": compare(few, "fast", 1200, args.repeats),
            "quality_500": compare(few, "quality", 500, args.repeats),
            "growth": growth(few),
            "peak_memory": peak_memory(images["grace_hopper.jpg"], "fast"),
            "peak_memory_quality": peak_memory(images["grace_hopper.jpg"], "quality"),
            "tool_images_per_second": tool_speed(images, copies=2),
        }
        seconds = figures["fast_500"]["predet_seconds"]
        hours = IMAGENET_IMAGES * seconds / CORES / 3600
        figures["imagenet_hours"] = {"value": round(hours, 2), "unit": f"hours on {CORES} cores"}
    lines = [
        json.dumps({"figure": name, **figure, **machine()}) for name, figure in figures.items()
    ]
    for name, figure in figures.items():
        target = f"  (target {TARGETS[name]})" if name in TARGETS else ""
        print(f"{name:24s}{figure['value']:>9} {figure['unit']}{target}")
    print("\n".join(lines))
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        kind = "selective_search_equality" if args.equality else "selective_search"
        (args.output / f"{kind}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
