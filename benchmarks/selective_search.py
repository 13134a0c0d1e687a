#!/usr/bin/env python
"""Selective Search against OpenCV's, one thread each, on photographs.

    benchmarks/selective_search.py [FIGURE ...] --images photos/ --output benchmarks/results

Photographs are those that come with scikit-image and matplotlib, and up to --count of each folder
given with --images (several: separated by commas), scaled so that the longer side has the size of
the figure. Both sides start from the same array and include colour conversion and smoothing; they
take turns. Times are processor times, which other programs disturb less; the ratio of wall times is
given besides.

`fast_500`, `fast_1200` and `quality_500` compare with OpenCV, and the sets of boxes too. `growth`
is the exponent of time in pixels, `peak_memory` and `peak_memory_quality` bytes a pixel,
`tool_images_per_second` the speed of tools/extract_proposals.py with one worker, `imagenet_hours`
what 1.28 million images at 500 pixels take on 64 cores.
"""

from __future__ import annotations

import argparse
import importlib.util
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
from figures import Figure, main, say, set_threads

from predet.ops import extension
from predet.ops.selective_search import selective_search

SCIKIT_IMAGE = (
    "astronaut.png", "motorcycle_left.png", "retina.jpg", "coffee.png", "chelsea.png",
    "rocket.jpg", "hubble_deep_field.jpg", "ihc.png", "camera.png", "coins.png",
)  # fmt: skip
IMAGENET_IMAGES, CORES = 1_281_167, 64
PEER = "OpenCV's Selective Search"


def images_of(args: argparse.Namespace) -> dict[str, np.ndarray]:
    """The photographs; also sets up the process."""
    if not extension.available("selective_search"):
        sys.exit("the native extension is not built: there is nothing to compare")
    set_threads(1)
    folders = [Path(folder) for folder in (args.images or "").split(",") if folder]
    return dict(photographs(folders, args.count))


def few(images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Three, for what takes long."""
    return dict(list(images.items())[:3])


def photographs(folders: list[Path], count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Names and (H, W, 3) uint8 RGB images."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        say("scikit-image is not installed; its photographs are left out")
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


def compared(images: dict[str, np.ndarray], mode: str, size: int, repeats: int) -> Figure:
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
        rows.append((ours, theirs, equal))
        say(
            f"  {mode:8s}{size:5d}  {name:32s} OpenCV {theirs[0]:7.3f} s  predet {ours[0]:7.4f} s"
            f"  {theirs[0] / ours[0]:5.1f}x (wall {theirs[1] / ours[1]:5.1f}x)"
            f"  {len(turns[0][0][2]):6d} boxes, {'the same' if equal else 'DIFFERENT'}"
        )
    ratios = sorted(theirs[0] / ours[0] for ours, theirs, _ in rows)
    return {
        "ratio": round(statistics.median(ratios), 2),
        "peer": PEER,
        "lowest": round(ratios[0], 2),
        "highest": round(ratios[-1], 2),
        "ratio_wall": round(statistics.median(theirs[1] / ours[1] for ours, theirs, _ in rows), 2),
        "ours_seconds": round(statistics.median(ours[0] for ours, _, _ in rows), 4),
        "peer_seconds": round(statistics.median(theirs[0] for _, theirs, _ in rows), 4),
        "images": len(rows),
        "equal_sets": sum(equal for _, _, equal in rows),
        "repeats": repeats,
        "threads": 1,
    }


def fast_500(args: argparse.Namespace) -> Figure:
    return compared(images_of(args), "fast", 500, args.repeats)


def fast_1200(args: argparse.Namespace) -> Figure:
    return compared(few(images_of(args)), "fast", 1200, args.repeats)


def quality_500(args: argparse.Namespace) -> Figure:
    return compared(few(images_of(args)), "quality", 500, args.repeats)


def growth(args: argparse.Namespace) -> Figure:
    """Exponent of time in pixels, by a line through the logarithms of each image."""
    exponents = []
    for image in few(images_of(args)).values():
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


def peak_memory(args: argparse.Namespace, mode: str = "fast") -> Figure:
    """Of one search of a photograph at 1200 pixels, in a process of its own."""
    image = images_of(args)["grace_hopper.jpg"]
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
            "peer": PEER, "peer_bytes": used["by_opencv"]}  # fmt: skip


def peak_memory_quality(args: argparse.Namespace) -> Figure:
    return peak_memory(args, "quality")


def tool_images_per_second(args: argparse.Namespace) -> Figure:
    """tools/extract_proposals.py on JPEG files of 500 pixels, without the start of its process."""
    images, copies = images_of(args), 2
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


def imagenet_hours(args: argparse.Namespace) -> Figure:
    seconds = [
        min(timed(lambda small=small: by_predet(small, "fast"))[0] for _ in range(args.repeats))
        for small in (scaled(image, 500) for image in images_of(args).values())
    ]
    hours = IMAGENET_IMAGES * statistics.mean(seconds) / CORES / 3600
    return {"value": round(hours, 2), "unit": f"hours on {CORES} cores", "mode": "fast"}


if __name__ == "__main__":
    main(
        __doc__,
        {
            "fast_500": fast_500,
            "fast_1200": fast_1200,
            "quality_500": quality_500,
            "growth": growth,
            "peak_memory": peak_memory,
            "peak_memory_quality": peak_memory_quality,
            "tool_images_per_second": tool_images_per_second,
            "imagenet_hours": imagenet_hours,
        },
        images=None,
        count=4,
        repeats=4,
    )
