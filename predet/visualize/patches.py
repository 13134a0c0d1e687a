"""Pictures of patches and of where a model found them, as in Figure 5 of UP-DETR."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from predet.visualize.pictures import (
    MARGIN,
    PAPER,
    Panel,
    class_color,
    comparison,
    contact_sheet,
    save_png,
)


class PatchPicture(NamedTuple):
    """An image, patches cut out of it, and where they were found. P patches."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    patches: np.ndarray  # (P, S, S, 3) uint8 RGB
    own: np.ndarray  # (P, 4) where they were cut, absolute xyxy
    found: np.ndarray  # (P, 4)
    scores: np.ndarray  # (P,)
    title: str = ""


def draw_patches(
    path: str | os.PathLike[str],
    pictures: Sequence[PatchPicture],
    *,
    score_threshold: float = 0.0,
    title: str = "",
    columns: int = 2,
    width: int = 320,
) -> Path:
    """Write one picture: images with the boxes found and the boxes cut out, patches below them.

    A patch, its frame, its box and the box found for it have one colour.

    Args:
        path: the PNG to write.
        pictures: images with what was found in them.
        score_threshold: boxes that score lower are not drawn.
        title: line above everything.
        columns: images beside each other.
        width: pixels of an image.

    Raises:
        ValueError: there are no images.
    """
    drawn = [_draw(picture, score_threshold, width) for picture in pictures]
    return save_png(path, contact_sheet(drawn, columns=columns, title=title))


def _draw(picture: PatchPicture, score_threshold: float, width: int) -> np.ndarray:
    number = np.arange(len(picture.patches))
    names = [str(i + 1) for i in number]
    sure = picture.scores >= score_threshold
    limits = f", score >= {score_threshold:g}" * (score_threshold > 0)
    found = Panel(
        f"found: {sure.sum()} of {len(number)}{limits}",
        picture.found[sure],
        number[sure],
        picture.scores[sure],
    )
    panels = [Panel("cut out", picture.own, number), found]
    above = comparison(
        picture.image, panels, class_names=names, title=picture.title, panel_width=width
    )
    return np.concatenate([above, _row_of_patches(picture.patches, above.shape[1])])


def _row_of_patches(patches: np.ndarray, width: int) -> np.ndarray:
    """The patches beside each other in frames of their colours, on as many lines as they need."""
    side, frame = 72, 4
    step = side + 2 * frame + MARGIN // 2
    per_line = max(1, (width - MARGIN) // step)
    lines = -(-len(patches) // per_line)
    sheet = Image.new("RGB", (width, lines * step + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, patch in enumerate(patches):
        line, place = divmod(number, per_line)
        left, top = MARGIN + place * step, line * step
        draw.rectangle(
            (left, top, left + side + 2 * frame - 1, top + side + 2 * frame - 1),
            fill=class_color(number),
        )
        small = Image.fromarray(patch).resize((side, side), Image.Resampling.BICUBIC)
        sheet.paste(small, (left + frame, top + frame))
    return np.asarray(sheet)
