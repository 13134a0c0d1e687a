"""Pictures of boxes on images: one image several times beside itself, many below one another.

Everything is drawn at the resolution of the picture, so small images are enlarged first and text
stays readable. Images are (H, W, 3) uint8 RGB arrays, boxes absolute xyxy in the image's frame.
"""

from __future__ import annotations

import colorsys
import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

INK: Color = (28, 32, 38)
FAINT: Color = (110, 118, 128)
PAPER: Color = (250, 250, 248)
MARGIN = 10
NAMED = 8  # predictions of an image that are labelled with their class
LEGEND = 40  # classes that a legend can name

# Told apart by people with the usual colour deficiencies when beside each other.
_FIRST_COLORS: tuple[Color, ...] = (
    (0, 148, 105),
    (230, 115, 0),
    (0, 95, 190),
    (204, 60, 150),
    (240, 210, 30),
    (60, 175, 235),
    (200, 40, 35),
    (150, 110, 220),
    (120, 200, 60),
    (140, 90, 60),
)


class Panel(NamedTuple):
    """One set of boxes to draw on an image. N boxes."""

    title: str
    boxes: np.ndarray  # (N, 4)
    classes: np.ndarray  # (N,)
    scores: np.ndarray | None = None  # (N,); None: not predicted, drawn without a number


def comparison(
    image: np.ndarray,
    panels: Sequence[Panel],
    *,
    class_names: Sequence[str],
    title: str = "",
    panel_width: int = 480,
) -> np.ndarray:
    """The image once for each panel, side by side, with a line of text above.

    Args:
        image: what to draw on.
        panels: the boxes, from left to right.
        class_names: names for the labels and colours of `classes`.
        title: text above all panels, for instance the file name.
        panel_width: pixels; the height follows from the image, at most 1.4 times that.
    """
    height, width = image.shape[:2]
    scale = min(panel_width / width, 1.4 * panel_width / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized = cv2.resize(image, size, interpolation=method)
    head = 26 if title else 4
    sheet = Image.new(
        "RGB",
        (len(panels) * (panel_width + MARGIN) + MARGIN, head + 24 + size[1] + MARGIN),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((MARGIN, 5), _shortened(title, sheet.width - 2 * MARGIN, 15), INK, _font(15))
    for position, panel in enumerate(panels):
        left = MARGIN + position * (panel_width + MARGIN)
        heading = _shortened(panel.title, panel_width, 13)
        draw.text((left, head + 1), heading, FAINT, _font(13))
        drawn = draw_boxes(resized, _scaled(panel, scale), class_names=class_names)
        sheet.paste(Image.fromarray(drawn), (left, head + 22))
    return np.asarray(sheet)


def draw_boxes(image: np.ndarray, panel: Panel, *, class_names: Sequence[str]) -> np.ndarray:
    """The image with a panel's boxes, in the image's own frame; best scores drawn last, on top.

    Predictions are labelled with class and score, or with the score alone where there are many:
    the colour tells the class (`contact_sheet` has a legend).
    """
    picture = Image.fromarray(image).convert("RGB")
    shorter = min(picture.size)
    line = max(2, round(shorter / 240))
    draw = ImageDraw.Draw(picture, "RGBA")
    count = len(panel.boxes)
    scores = np.ones(count) if panel.scores is None else np.asarray(panel.scores)
    order = np.argsort(scores, kind="stable")
    strongest = max(float(scores.max(initial=0.0)), 1e-6)
    for index in order:
        opacity = int(255 * (0.5 + 0.5 * max(0.0, float(scores[index])) / strongest))
        box = [float(value) for value in panel.boxes[index]]
        _rectangle(draw, box, (*class_color(int(panel.classes[index])), opacity), line)
    text_size = 13 if count <= 15 else 11
    taken: list[tuple[float, float, float, float]] = []
    for index in order[::-1]:  # where labels would lie on each other, the best keep theirs
        label = class_names[int(panel.classes[index])]
        if panel.scores is not None:
            label = f"{label} {scores[index]:.2f}" if count <= NAMED else f"{scores[index]:.2f}"
        _label(
            draw,
            picture.size,
            panel.boxes[index],
            label,
            int(panel.classes[index]),
            text_size,
            taken,
        )
    return np.asarray(picture)


def contact_sheet(
    pictures: Sequence[np.ndarray],
    *,
    columns: int = 1,
    title: str = "",
    class_names: Sequence[str] = (),
) -> np.ndarray:
    """Pictures in rows of `columns`, each row as high as its highest.

    Args:
        pictures: in the order of reading.
        columns: pictures in a row.
        title: line above everything.
        class_names: classes whose colours a legend under the title explains; none: no legend.

    Raises:
        ValueError: there are no pictures.
    """
    if not pictures:
        raise ValueError("there are no pictures to put on a sheet")
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    width = max(sum(picture.shape[1] for picture in row) for row in rows)
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    places, legend_height = _legend_places(class_names[:LEGEND], width)
    head = (36 if title else 0) + legend_height
    sheet = Image.new("RGB", (width, head + sum(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((MARGIN, 9), _shortened(title, width - 2 * MARGIN, 18), INK, _font(18))
    for label, (left, top) in enumerate(places):
        top += head - legend_height
        draw.rectangle((left, top + 2, left + 11, top + 13), fill=class_color(label))
        draw.text((left + 17, top), class_names[label], INK, _font(13))
    top = head
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for picture in row:
            sheet.paste(Image.fromarray(picture), (left, top))
            left += picture.shape[1]
        top += height
    return np.asarray(sheet)


def save_png(path: str | os.PathLike[str], image: np.ndarray) -> Path:
    """Write a picture; the folder is made when missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def class_color(label: int) -> Color:
    """The colour of a class, the same in every picture."""
    if label < len(_FIRST_COLORS):
        return _FIRST_COLORS[label]
    hue = math.modf(0.11 + label * (math.sqrt(5) - 1) / 2)[0]
    red, green, blue = colorsys.hls_to_rgb(hue, 0.42 + 0.16 * (label % 3 - 1), 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)


def _legend_places(names: Sequence[str], width: int) -> tuple[list[tuple[int, int]], int]:
    """Top left corner of each entry of a legend, and the legend's height."""
    places: list[tuple[int, int]] = []
    left, top = MARGIN, 4
    for name in names:
        needed = 17 + round(_font(13).getlength(name)) + 18
        if left + needed > width and left > MARGIN:
            left, top = MARGIN, top + 20
        places.append((left, top))
        left += needed
    return places, (top + 24 if places else 0)


def _scaled(panel: Panel, scale: float) -> Panel:
    return panel._replace(boxes=np.asarray(panel.boxes, dtype=np.float64).reshape(-1, 4) * scale)


def _rectangle(
    draw: ImageDraw.ImageDraw, box: Sequence[float], color: tuple[int, ...], line: int
) -> None:
    """A frame whose corners may be anywhere, upside down boxes included."""
    x1, y1, x2, y2 = box
    corners = [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]
    draw.rectangle(corners, outline=color, width=line)


def _label(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: np.ndarray,
    text: str,
    label: int,
    text_size: int,
    taken: list[tuple[float, float, float, float]],
) -> None:
    """Text on the box's colour: above it, else inside at its top, else not at all."""
    font = _font(text_size)
    width, height = draw.textlength(text, font) + 6, text_size + 4
    left = float(min(max(0.0, box[0]), size[0] - width))
    for top in (float(box[1]) - height, float(box[1]), float(box[3]) - height):
        place = (left, top, left + width, top + height)
        if top < 0 or place[3] > size[1] or any(_overlap(place, other) for other in taken):
            continue
        taken.append(place)
        color = class_color(label)
        dark = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] < 140
        draw.rectangle(place, fill=(*color, 225))
        draw.text((left + 3, top + 1), text, (255, 255, 255) if dark else INK, font)
        return


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _shortened(text: str, width: int, size: int) -> str:
    """The text, its beginning cut off where it would be wider than `width` pixels."""
    if _font(size).getlength(text) <= width:
        return text
    while text and _font(size).getlength("... " + text) > width:
        text = text[1:]
    return "... " + text


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib, so that it is the same everywhere."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
