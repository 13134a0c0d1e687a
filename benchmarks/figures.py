"""What the benchmarks share: timing in turns, and the form of their figures.

Each figure is one JSON object on a line of standard output: `name`; either `value` with `unit`, or
`ratio` with `peer` (the peer's time / ours: above 1 is better for predet); medians with their
spread; threads, versions and machine. What people read goes to standard error. With --output the
lines are kept too, in a file named after the script.

Other programs may use the machine: the two sides of a ratio take turns in one process, and
`load` says how busy it was.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import torch

from predet.ops import extension

Figure = dict[str, Any]

PACKAGES = (
    "numpy", "scipy", "torch", "torchvision", "transformers", "opencv-contrib-python", "pillow",
    "pycocotools", "faster-coco-eval",
)  # fmt: skip


def main(
    doc: str, figures: dict[str, Callable[[argparse.Namespace], Figure]], **options: Any
) -> None:
    """Command line of a benchmark: all figures, or those named.

    Args:
        doc: docstring of the script.
        figures: what to measure, by name.
        options: default values of further options, by name: `images=None` gives --images.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="FIGURE", help=f"of {', '.join(figures)}")
    parser.add_argument("--output", type=Path, help="folder in which to keep the figures")
    for name, default in options.items():
        kind = str if default is None else type(default)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default)
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(figures))
    if unknown:
        parser.error(f"no figure is called {unknown}; there are {sorted(figures)}")
    lines = []
    for name in args.names or figures:
        figure = {"name": name, **figures[name](args), **machine()}
        lines.append(json.dumps(figure))
        print(lines[-1], flush=True)
        say(summary(figure))
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        kept = args.output / f"{Path(sys.argv[0]).stem}.jsonl"
        kept.write_text("\n".join([*others(kept, lines), *lines]) + "\n")


def compare(
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    *,
    peer: str,
    repeats: int = 7,
    ours_each: int = 1,
) -> Figure:
    """Time both sides in turns, after one round to warm up.

    Args:
        ours: predet's side.
        theirs: the peer's side.
        peer: what the peer is, in words.
        repeats: rounds that count.
        ours_each: how often ours runs in a round, for one that is short.
    """
    ours()
    theirs()
    ours_ms, peer_ms = [], []
    for _ in range(repeats):
        peer_ms.append(milliseconds(theirs))
        ours_ms += [milliseconds(ours) for _ in range(ours_each)]
    ratio = statistics.median(peer_ms) / statistics.median(ours_ms)
    return {
        "ratio": round(ratio, 3),
        "peer": peer,
        "ours_ms": spread(ours_ms),
        "peer_ms": spread(peer_ms),
        "repeats": repeats,
        "threads": torch.get_num_threads(),
    }


def milliseconds(run: Callable[[], Any]) -> float:
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return 1e3 * (time.perf_counter() - start)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def spread(values: Iterable[float]) -> dict[str, float]:
    values = sorted(values)
    numbers = {"median": statistics.median(values), "min": values[0], "max": values[-1]}
    return {name: float(f"{number:.4g}") for name, number in numbers.items()}


def summary(figure: Figure) -> str:
    if "ratio" in figure:
        return f"{figure['name']}: {figure['ratio']} times as fast as {figure['peer']}"
    return f"{figure['name']}: {figure['value']} {figure['unit']}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def set_threads(count: int) -> None:
    """For torch, OpenCV and predet's own operators, which follow torch."""
    torch.set_num_threads(count)
    cv2.setNumThreads(count)


def machine() -> Figure:
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := version_of(name))},
        "native": extension.build_info(),
    }


def commit() -> str:
    """Of predet; "-dirty" where the tree has other changes."""
    command = ["git", "describe", "--always", "--dirty"]
    folder = Path(__file__).parent
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def others(kept: Path, lines: list[str]) -> list[str]:
    """Lines kept from earlier runs whose figures are not among the new ones."""
    new = {json.loads(line)["name"] for line in lines}
    old = kept.read_text().splitlines() if kept.exists() else []
    return [line for line in old if json.loads(line)["name"] not in new]
