"""Maps of how much pixels matter, on their images, as in Figure 5 of DETReg."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from predet.visualize.pictures import Panel, comparison, contact_sheet, save_png

WHITE_AT = 99.5  # percentile of a map that is drawn as bright as can be
DIMMED = 0.35  # of the image under a map


class GradientPicture(NamedTuple):
    """An image, a prediction in it, and maps of how it depends on the pixels."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    box: np.ndarray  # (4,) absolute xyxy
    score: float
    maps: Mapping[str, np.ndarray]  # heading -> (H, W), not negative
    title: str = ""


def draw_gradients(
    path: str | os.PathLike[str],
    pictures: Sequence[GradientPicture],
    *,
    title: str = "",
    columns: int = 1,
    width: int = 240,
) -> Path:
    """Write one picture: each image with its prediction, and beside it a panel for each map.

    A map is scaled by itself, so maps tell where, not how much.

    Args:
        path: the PNG to write.
        pictures: images with what was found about them.
        title: line above everything.
        columns: images beside each other.
        width: pixels of an image.

    Raises:
        ValueError: there are no images.
    """
    drawn = [_draw(picture, width) for picture in pictures]
    return save_png(path, contact_sheet(drawn, columns=columns, title=title))


def heat(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The image, darkened and gray, with `values` (H, W) as light from black over red to white."""
    scale = np.percentile(values, WHITE_AT) or values.max() or 1.0
    level = np.rint(255 * np.clip(values / scale, 0, 1)).astype(np.uint8)
    light = cv2.cvtColor(cv2.applyColorMap(level, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    strength = np.clip(values / scale, 0, 1)[..., None]
    mixed = (1 - strength) * DIMMED * gray + strength * light
    return np.rint(np.maximum(mixed, light)).clip(0, 255).astype(np.uint8)


def _draw(picture: GradientPicture, width: int) -> np.ndarray:
    boxes, classes = picture.box[None], np.zeros(1, np.int64)
    scores = np.array([picture.score])
    cells = [(picture.image, Panel("most confident box", boxes, classes, scores))]
    cells += [
        (heat(picture.image, values), Panel(heading, boxes[:0], classes[:0]))
        for heading, values in picture.maps.items()
    ]
    drawn = [
        comparison(
            image,
            [panel],
            class_names=["object"],
            title=picture.title if number == 0 else " ",
            panel_width=width,
        )
        for number, (image, panel) in enumerate(cells)
    ]
    return np.concatenate(drawn, axis=1)
