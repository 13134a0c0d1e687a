"""Where the boxes of each query fall, as in Figure 4 of DETReg (and Figure 7 of DETR)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Of a box whose sides differ by less than this factor it is said that it is square.
SQUARE = math.sqrt(2)
SHAPES = {"square": "#009E73", "horizontal": "#E69F00", "vertical": "#0072B2"}
# Area in points of the dot of a box as large as its image, and the least of all.
LARGEST, LEAST = 60.0, 3.0


def shapes_of(boxes: np.ndarray) -> np.ndarray:
    """(N, 4) xyxy in pixels -> (N,) names of `SHAPES`."""
    width, height = (boxes[:, 2:] - boxes[:, :2]).clip(min=1e-6).T
    shapes = np.where(width >= height * SQUARE, "horizontal", "square")
    return np.where(height >= width * SQUARE, "vertical", shapes)


def draw_queries(
    path: str | os.PathLike[str],
    boxes: Mapping[str, np.ndarray],
    sizes: np.ndarray,
    *,
    num_queries: int = 10,
    title: str = "",
) -> Path:
    """Write one picture: a row for each detector, a square for each of its first queries.

    A dot is the centre of the box that the query gave in one image, in parts of the image. It is
    green for a box that is about square, orange for a horizontal one, blue for a vertical one; a
    larger box has a larger dot.

    Args:
        path: the PNG to write.
        boxes: name of a detector -> (I, Q, 4), absolute xyxy, of I images and Q queries.
        sizes: (I, 2), height and width of each image.
        num_queries: how many of the queries are drawn, in their order.
        title: line above everything.

    Raises:
        ValueError: there is no detector or no image.
    """
    if not boxes or not len(sizes):
        raise ValueError("there are no boxes of queries to draw")
    count = min(num_queries, *(found.shape[1] for found in boxes.values()))
    figure = Figure(
        figsize=(1.5 * count + 0.6, 1.62 * len(boxes) + 0.9), layout="constrained", dpi=110
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(boxes), count, squeeze=False)
    limits = np.concatenate([sizes[:, ::-1]] * 2, axis=1)  # width, height, width, height
    for query, axis in enumerate(axes[0]):
        axis.set_title(f"query {query + 1}", fontsize=9)
    for row, (name, found) in zip(axes, boxes.items(), strict=True):
        row[0].set_ylabel(name, fontsize=10)
        for query, axis in enumerate(row):
            own = found[:, query]
            parts = own / limits
            centers = (parts[:, :2] + parts[:, 2:]) / 2
            area = np.prod(parts[:, 2:] - parts[:, :2], axis=1).clip(0, 1)
            colors = [SHAPES[shape] for shape in shapes_of(own)]
            dots = np.maximum(LARGEST * area, LEAST)
            axis.scatter(*centers.T, s=dots, c=colors, alpha=0.7, linewidths=0)
            axis.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal")
    handles = [
        Line2D([], [], marker="o", linestyle="", color=color, label=f"{shape} box")
        for shape, color in SHAPES.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=12)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
