"""Draw boxes and labels on an image. Contract: `detectron2.utils.visualizer.Visualizer`.

It paints pixels (Pillow), so it is quick; a class has the same colour in every picture. Only what
predet draws is here: boxes and text, no masks or keypoints.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from predet.d2.embedded.catalog import Metadata
from predet.d2.embedded.structures import Boxes, BoxMode, Instances

Color = str | Sequence[float]  # a name that matplotlib knows, or (r, g, b) in [0, 1]


class VisImage:
    """A picture being drawn.

    Args:
        img: (H, W, 3) RGB in [0, 255].
        scale: the picture is this many times as large; what is drawn keeps the frame of `img`.
    """

    def __init__(self, img: np.ndarray, scale: float = 1.0):
        self.height, self.width = img.shape[:2]
        self.scale = scale
        picture = Image.fromarray(img.astype(np.uint8))
        # The small term keeps 3 * 0.1 * 10 from being one less than 3.
        size = (int(self.width * scale + 1e-2), int(self.height * scale + 1e-2))
        self.canvas = picture if size == picture.size else picture.resize(size)

    def get_image(self) -> np.ndarray:
        """(H * scale, W * scale, 3) uint8 RGB; a copy."""
        return np.array(self.canvas)

    def save(self, filepath: str | Path) -> None:
        """Write the picture in the format of the file's extension."""
        self.canvas.save(filepath)


class Visualizer:
    """Draws on one image; the methods return its `output`.

    Args:
        img_rgb: (H, W, 3) RGB in [0, 255].
        metadata: of the data set; `thing_classes` names the classes, `thing_colors` (0 to 255)
            colours them.
        scale: of the picture against the image.
        font_size_scale: of the text against what fits the image.
    """

    def __init__(
        self,
        img_rgb: np.ndarray,
        metadata: Metadata | None = None,
        scale: float = 1.0,
        *,
        font_size_scale: float = 1.0,
    ):
        self.img = np.asarray(img_rgb).clip(0, 255).astype(np.uint8)
        if self.img.ndim != 3 or self.img.shape[2] != 3:
            raise ValueError(f"the image must be (H, W, 3), got {self.img.shape}")
        self.metadata = Metadata(name="none") if metadata is None else metadata
        self.output = VisImage(self.img, scale)
        side = np.sqrt(self.output.height * self.output.width)
        self.font_size = max(side / 45, 10 / scale) * font_size_scale  # in pixels of the image

    def draw_instance_predictions(self, predictions: Instances) -> VisImage:
        """Draw `pred_boxes`, labelled by `pred_classes` and `scores` as far as there are any."""
        if not predictions.has("pred_boxes"):
            return self.output
        boxes = predictions.pred_boxes
        scores = predictions.scores.tolist() if predictions.has("scores") else None
        classes = predictions.pred_classes.tolist() if predictions.has("pred_classes") else None
        return self.overlay_instances(
            boxes=boxes,
            labels=self._labels(classes, scores),
            assigned_colors=self._class_colors(classes),
        )

    def draw_dataset_dict(self, dic: dict[str, Any]) -> VisImage:
        """Draw the `annotations` of an image in Detectron2's data set format."""
        annotations = dic.get("annotations") or []
        if not annotations:
            return self.output
        classes = [annotation["category_id"] for annotation in annotations]
        labels = self._labels(classes, None)
        assert labels is not None
        crowd = ["|crowd" if annotation.get("iscrowd") else "" for annotation in annotations]
        return self.overlay_instances(
            boxes=[
                BoxMode.convert(list(one["bbox"]), one["bbox_mode"], BoxMode.XYXY_ABS)
                for one in annotations
            ],
            labels=[label + mark for label, mark in zip(labels, crowd, strict=True)],
            assigned_colors=self._class_colors(classes),
        )

    def overlay_instances(
        self,
        *,
        boxes: Boxes | np.ndarray | Sequence | None = None,
        labels: Sequence[str] | None = None,
        assigned_colors: Sequence[Color] | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw boxes with labels, the largest first so that it hides none.

        Args:
            boxes: (N, 4) absolute xyxy.
            labels: a text for each box.
            assigned_colors: a colour for each box.
            alpha: opacity of the boxes.

        Raises:
            ValueError: not as many labels or colours as boxes.
        """
        corners = _as_array(boxes)
        count = len(corners)
        for what, given in (("labels", labels), ("assigned_colors", assigned_colors)):
            if given is not None and len(given) != count:
                raise ValueError(
                    f"{what}: expected one for each of {count} boxes, got {len(given)}"
                )
        colors = assigned_colors or [class_color(index) for index in range(count)]
        area = (corners[:, 2:] - corners[:, :2]).prod(1)
        for index in np.argsort(-area, kind="stable"):
            self.draw_box(corners[index], alpha=alpha, edge_color=colors[index])
            if labels is not None:
                self.draw_text(
                    labels[index],
                    tuple(corners[index, :2]),
                    color=colors[index],
                    horizontal_alignment="left",
                )
        return self.output

    def draw_box(
        self, box_coord: Sequence[float], alpha: float = 0.5, edge_color: Color = "g"
    ) -> VisImage:
        """Draw the outline of a box (x1, y1, x2, y2), centred on its border."""
        width = max(1, round(max(self.font_size / 8, 1) * self.output.scale))
        x1, y1, x2, y2 = (float(value) * self.output.scale for value in box_coord)
        outer = (np.array([x1, y1, x2, y2]) + width / 2 * np.array([-1, -1, 1, 1])).round()
        if outer[2] - outer[0] < 1 or outer[3] - outer[1] < 1:
            return self.output
        outer[2:] -= 1  # Pillow draws up to and with the last pixel
        mask = Image.new("L", self.output.canvas.size, 0)
        ImageDraw.Draw(mask).rectangle(tuple(outer), outline=round(255 * alpha), width=width)
        self.output.canvas.paste(_to_rgb255(edge_color), mask=mask)
        return self.output

    def draw_text(
        self,
        text: str,
        position: tuple[float, float],
        *,
        font_size: float | None = None,
        color: Color = "g",
        horizontal_alignment: str = "center",
    ) -> VisImage:
        """Draw text on a dark ground, with its top at `position`, kept inside the picture.

        Args:
            position: x and y in the frame of the image.
            font_size: in pixels of the image; None fits the image.
            horizontal_alignment: "left", "center" or "right": where of the text x is.
        """
        shift = {"left": 0.0, "center": 0.5, "right": 1.0}
        if horizontal_alignment not in shift:
            raise ValueError(
                f"horizontal_alignment must be one of {list(shift)}, got {horizontal_alignment!r}"
            )
        canvas, scale = self.output.canvas, self.output.scale
        font = _font(max(6, round((font_size or self.font_size) * scale)))
        draw = ImageDraw.Draw(canvas, "RGBA")
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        pad = 1
        width, height = right - left + 2 * pad, bottom - top + 2 * pad
        x = position[0] * scale - shift[horizontal_alignment] * width
        x = min(max(0.0, x), max(0.0, canvas.width - width))
        y = min(max(0.0, position[1] * scale), max(0.0, canvas.height - height))
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=(0, 0, 0, 204))
        draw.text((x + pad - left, y + pad - top), text, font=font, fill=_readable(color))
        return self.output

    def _labels(
        self, classes: Sequence[int] | None, scores: Sequence[float] | None
    ) -> list[str] | None:
        """Names of the classes, or their numbers, and scores in percent."""
        parts: list[list[str]] = []
        if classes is not None:
            names = self.metadata.get("thing_classes", None)
            parts.append([names[index] if names else str(index) for index in classes])
        if scores is not None:
            parts.append([f"{100 * score:.0f}%" for score in scores])
        return [" ".join(words) for words in zip(*parts, strict=True)] if parts else None

    def _class_colors(self, classes: Sequence[int] | None) -> list[Color] | None:
        if classes is None:
            return None
        palette = self.metadata.get("thing_colors", None)
        if palette:
            return [tuple(value / 255 for value in palette[index]) for index in classes]
        return [class_color(index) for index in classes]


def class_color(index: int) -> tuple[float, float, float]:
    """A bright colour for a class, (r, g, b) in [0, 1]; neighbours differ much."""
    golden_ratio = 0.618034
    return colorsys.hsv_to_rgb((index * golden_ratio) % 1.0, 0.75 + 0.25 * (index % 2), 1.0)


def _as_array(boxes: Boxes | np.ndarray | torch.Tensor | Sequence | None) -> np.ndarray:
    if boxes is None:
        return np.zeros((0, 4), np.float32)
    if isinstance(boxes, Boxes):
        boxes = boxes.tensor
    if isinstance(boxes, torch.Tensor):
        boxes = boxes.detach().cpu().numpy()
    return np.asarray(boxes, np.float32).reshape(-1, 4)


def _to_rgb255(color: Color) -> tuple[int, int, int]:
    if isinstance(color, str):
        from matplotlib.colors import to_rgb  # slow to import, and seldom needed

        color = to_rgb(color)
    red, green, blue = (round(255 * float(value)) for value in color)
    return red, green, blue


def _readable(color: Color) -> tuple[int, int, int]:
    """The colour, made light enough for a dark ground."""
    rgb = np.array(_to_rgb255(color))
    light = rgb + (255 - rgb) * 0.4
    red, green, blue = light.round().astype(int).tolist()
    return red, green, blue


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows more than Latin letters."""
    import matplotlib

    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size
    )
