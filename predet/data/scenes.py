"""Scenes: labelled images drawn from a seed, for tests, the demo and generated pre-training.

Textured objects of several classes and many sizes lie over each other on cluttered backgrounds,
among strokes, blobs, outlines and fragments that are no objects. What is what follows from shape
and texture together; colours only tend to a hue for each class.

Labels: the box is that of the *visible* pixels of an object, and "area" is their number. An object
of which less than `MIN_VISIBLE` is visible (the rest covered, or beyond the border) is not
labelled.

The same arguments give the same bytes with the same releases of NumPy and OpenCV.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from predet.data.scene_objects import SCENE_CLASSES, ObjectPatch, draw_object, hsv_to_rgb

MIN_VISIBLE = 0.4
_SMALLEST_IMAGE = 32
_PLACEMENTS = 6  # tries to find a place where no object is hidden
_MIN_RADIUS, _MAX_RADIUS = 0.06, 0.25  # parts of the image's short side


class Scene(NamedTuple):
    """An image and its labels."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    boxes: np.ndarray  # (N, 4) float32 absolute xyxy of the visible pixels
    classes: np.ndarray  # (N,) int64
    areas: np.ndarray  # (N,) int64 visible pixels


def draw_scene(
    rng: np.random.Generator,
    *,
    height: int = 128,
    width: int = 128,
    num_classes: int = 6,
    max_objects: int = 6,
    clutter: float = 1.0,
) -> Scene:
    """Draw one scene.

    Args:
        num_classes: The first so many of `SCENE_CLASSES`.
        max_objects: The number of objects is uniform in [1, max_objects].
        clutter: Amount of things that are no objects; 0 for none.

    Raises:
        ValueError: An argument is out of range.
    """
    _check_arguments(height, width, num_classes, max_objects, clutter)
    canvas = _draw_background(rng, height, width)
    _draw_clutter(canvas, rng, clutter, num_classes)
    owner = np.full((height, width), -1, np.int16)
    full_areas: list[int] = []
    classes = rng.integers(num_classes, size=rng.integers(1, max_objects, endpoint=True))
    for category in classes:
        short = min(height, width)
        radius = short * _MIN_RADIUS * (_MAX_RADIUS / _MIN_RADIUS) ** rng.random()
        patch = draw_object(SCENE_CLASSES[category], radius, rng)
        full_areas.append(int((patch.alpha > 0.5).sum()))
        top, left = _choose_place(patch, owner, full_areas, rng)
        _paint(patch, top, left, canvas, owner, index=len(full_areas) - 1)
    noise = rng.integers(-6, 6, canvas.shape, np.int8, endpoint=True)
    image = np.clip(canvas + noise, 0, 255).astype(np.uint8)
    return Scene(image, *_label(owner, classes, full_areas))


def make_scenes(
    output_dir: str | os.PathLike[str],
    *,
    num_images: int,
    image_size: int | tuple[int, int] = 128,
    num_classes: int = 6,
    seed: int,
    split: str | None = None,
    prefix: str = "",
    max_objects: int = 6,
    clutter: float = 1.0,
) -> Path:
    """Write scenes as PNG files with a COCO JSON, for `load_dataset(output_dir, split=split)`.

    Without `split`: <output_dir>/annotations.json and images/<prefix>000001.png. With it:
    annotations/instances_<split>.json and <split>/<prefix>000001.png. Image i is a function of
    (seed, split, prefix, i), so that splits of one seed share no image, and the first images of a
    longer set are those of a shorter one. Category ids run from 1.

    Args:
        image_size: Pixels; one number for squares, or (height, width).
        max_objects, clutter: As in `draw_scene`.

    Returns:
        The path of the JSON file, which is written last.

    Raises:
        ValueError: An argument is out of range.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    _check_arguments(height, width, num_classes, max_objects, clutter)
    if num_images < 1:
        raise ValueError(f"num_images must be 1 or more, got {num_images}")
    output = Path(output_dir)
    folder = output / (split or "images")
    folder.mkdir(parents=True, exist_ok=True)
    stream = zlib.crc32(f"{split or ''}/{prefix}".encode())
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, num_images + 1):
        scene = draw_scene(
            np.random.default_rng([seed, stream, number]),
            height=height,
            width=width,
            num_classes=num_classes,
            max_objects=max_objects,
            clutter=clutter,
        )
        name = f"{prefix}{number:06d}.png"
        _write_png(folder / name, scene.image)
        file_name = name if split else f"images/{name}"
        images.append({"id": number, "file_name": file_name, "height": height, "width": width})
        annotations += _coco_annotations(scene, number, first_id=len(annotations) + 1)
    content = {
        "info": {"description": f"scenes drawn by predet, seed {seed}, {height}x{width} pixels"},
        "images": images,
        "categories": [
            {"id": index, "name": kind.name}
            for index, kind in enumerate(SCENE_CLASSES[:num_classes], start=1)
        ],
        "annotations": annotations,
    }
    json_path = output / (f"annotations/instances_{split}.json" if split else "annotations.json")
    json_path.parent.mkdir(parents=True, exist_ok=True)
    partial = json_path.with_suffix(".json.partial")
    partial.write_text(json.dumps(content), encoding="utf-8")
    partial.replace(json_path)
    return json_path


def _check_arguments(
    height: int, width: int, num_classes: int, max_objects: int, clutter: float
) -> None:
    if min(height, width) < _SMALLEST_IMAGE:
        raise ValueError(
            f"scenes need {_SMALLEST_IMAGE} pixels or more a side, got {height}x{width}"
        )
    if not 1 <= num_classes <= len(SCENE_CLASSES):
        raise ValueError(f"num_classes must lie in [1, {len(SCENE_CLASSES)}], got {num_classes}")
    if max_objects < 1 or clutter < 0:
        raise ValueError(
            f"expected max_objects >= 1 and clutter >= 0, got {max_objects} and {clutter}"
        )


def _draw_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth and middle-sized blotches around one colour -> (H, W, 3) float32."""
    base = hsv_to_rgb(rng.uniform(0, 360), rng.uniform(0.05, 0.5), rng.uniform(0.3, 0.85))
    canvas = np.tile(base, (height, width, 1))
    for cells, amplitude in ((rng.integers(2, 5), 45), (rng.integers(6, 20), 25)):
        coarse = rng.integers(-amplitude, amplitude, (cells, cells, 3), endpoint=True)
        canvas += cv2.resize(
            coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
        )
    fine = rng.integers(-14, 14, (height // 2, width // 2, 1), endpoint=True).astype(np.float32)
    canvas += cv2.resize(fine, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    return canvas


def _draw_clutter(
    canvas: np.ndarray, rng: np.random.Generator, clutter: float, num_classes: int
) -> None:
    """Strokes, arcs, flat blobs, outlines and fragments of the classes' shapes."""
    for _ in range(rng.poisson(9 * clutter)):
        draw = (_draw_stroke, _draw_arc, _draw_blob, _draw_fragment)[rng.integers(4)]
        hue = SCENE_CLASSES[rng.integers(num_classes)].hue + rng.uniform(-40, 40)
        color = hsv_to_rgb(hue, rng.uniform(0.2, 0.9), rng.uniform(0.2, 1.0))
        draw(canvas, rng, color)


def _random_points(canvas: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    height, width = canvas.shape[:2]
    return rng.integers(0, [width, height], (count, 2)).astype(np.int32)


def _draw_stroke(canvas: np.ndarray, rng: np.random.Generator, color: np.ndarray) -> None:
    points = _random_points(canvas, rng, int(rng.integers(2, 5)))
    thickness = int(rng.integers(1, 3, endpoint=True))
    cv2.polylines(canvas, [points], False, color.tolist(), thickness)


def _draw_arc(canvas: np.ndarray, rng: np.random.Generator, color: np.ndarray) -> None:
    center = _random_points(canvas, rng, 1)[0].tolist()
    axes = rng.integers(4, max(5, min(canvas.shape[:2]) // 4), 2).tolist()
    start, extent = int(rng.integers(360)), int(rng.integers(60, 270))
    thickness = int(rng.integers(1, 3, endpoint=True))
    cv2.ellipse(canvas, center, axes, 0, start, start + extent, color.tolist(), thickness)


def _draw_blob(canvas: np.ndarray, rng: np.random.Generator, color: np.ndarray) -> None:
    """An uneven polygon of one colour."""
    spread = max(3, min(canvas.shape[:2]) // 7)
    points = _random_points(canvas, rng, 1) + rng.integers(-spread, spread, (5, 2))
    cv2.fillConvexPoly(canvas, cv2.convexHull(points.astype(np.int32)), color.tolist())


def _draw_fragment(canvas: np.ndarray, rng: np.random.Generator, color: np.ndarray) -> None:
    """A thin slice of a textured object."""
    kind = SCENE_CLASSES[rng.integers(len(SCENE_CLASSES))]
    patch = draw_object(kind, min(canvas.shape[:2]) * rng.uniform(0.06, 0.16), rng)
    side = len(patch.alpha)
    kept = np.arange(side) < side * 0.32  # of which the rim of the patch is empty
    patch = ObjectPatch(patch.color * 0.5 + color * 0.5, patch.alpha * kept)
    top, left = _random_points(canvas, rng, 1)[0][::-1] - side // 2
    _paint(patch, int(top), int(left), canvas, None, index=0)


def _choose_place(
    patch: ObjectPatch, owner: np.ndarray, full_areas: list[int], rng: np.random.Generator
) -> tuple[int, int]:
    """A top left corner, if it can be found one by which no object becomes mostly hidden."""
    visible = np.bincount(owner[owner >= 0], minlength=len(full_areas))
    solid = patch.alpha > 0.5
    for _ in range(_PLACEMENTS):
        row, column = rng.integers(0, owner.shape)
        top, left = int(row) - len(solid) // 2, int(column) - len(solid) // 2
        inside, window = _overlap(owner.shape, len(solid), top, left)
        covered = owner[window][solid[inside]]
        left_over = visible - np.bincount(covered[covered >= 0], minlength=len(full_areas))
        left_over[-1] = len(covered)
        if (left_over >= MIN_VISIBLE * np.asarray(full_areas)).all():
            break
    return top, left


def _overlap(
    shape: tuple[int, ...], side: int, top: int, left: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of a square patch that lies in the image: slices of the patch and of the image."""
    rows = slice(max(top, 0), min(top + side, shape[0]))
    columns = slice(max(left, 0), min(left + side, shape[1]))
    patch_rows = slice(rows.start - top, rows.stop - top)
    return (patch_rows, slice(columns.start - left, columns.stop - left)), (rows, columns)


def _paint(
    patch: ObjectPatch,
    top: int,
    left: int,
    canvas: np.ndarray,
    owner: np.ndarray | None,
    *,
    index: int,
) -> None:
    inside, window = _overlap(canvas.shape, len(patch.alpha), top, left)
    alpha = patch.alpha[inside][..., None]
    canvas[window] += (patch.color[inside] - canvas[window]) * alpha
    if owner is not None:
        owner[window][alpha[..., 0] > 0.5] = index


def _label(
    owner: np.ndarray, classes: np.ndarray, full_areas: list[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, classes and areas of the objects of which enough is visible."""
    boxes, kept, areas = [], [], []
    for index, full_area in enumerate(full_areas):
        mask = owner == index
        area = int(mask.sum())
        if area < max(1, MIN_VISIBLE * full_area):
            continue
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        kept.append(index)
        areas.append(area)
    boxes_array = np.asarray(boxes, np.float32).reshape(-1, 4)
    return boxes_array, classes[kept].astype(np.int64), np.asarray(areas, np.int64)


def _write_png(path: Path, image: np.ndarray) -> None:
    if not cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
        raise OSError(f"{path}: the image could not be written")


def _coco_annotations(scene: Scene, image_id: int, *, first_id: int) -> list[dict[str, Any]]:
    found = zip(scene.boxes.tolist(), scene.classes.tolist(), scene.areas.tolist(), strict=True)
    return [
        {
            "id": number,
            "image_id": image_id,
            "category_id": category + 1,
            "bbox": [left, top, right - left, bottom - top],
            "area": area,
            "iscrowd": 0,
        }
        for number, ((left, top, right, bottom), category, area) in enumerate(found, first_id)
    ]
