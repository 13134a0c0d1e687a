"""Shapes and textures of the objects in generated scenes.

Both are functions of the object's own coordinates: u to the right and v down, before rotation, the
object filling about [-1, 1] in each. A shape gives the signed distance to its outline (negative
inside), a texture the share of the second of two colours, in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Field = Callable[[np.ndarray, np.ndarray], np.ndarray]
Texture = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


class SceneClass(NamedTuple):
    """What all objects of a class share; colours only tend to a hue."""

    name: str
    shape: Field
    texture: Texture
    hue: int  # degrees


def _radius(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sqrt(u * u + v * v)


def _box(u: np.ndarray, v: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    return np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)


def _sides(u: np.ndarray, v: np.ndarray, count: int) -> np.ndarray:
    """(count, ...) signed distance from lines through the centre, their normals equally spread."""
    angles = [2 * math.pi * side / count - math.pi / 2 for side in range(count)]
    return np.stack([u * math.cos(angle) + v * math.sin(angle) for angle in angles])


def _disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _radius(u, v) - 0.95


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _sides(u, v, 3).max(axis=0) - 0.5


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.minimum(_box(u, v, 0.95, 0.33), _box(u, v, 0.33, 0.95))


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(_radius(u, v) - 0.68) - 0.28


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # Five points: where at most one of the pentagon's five sides is exceeded.
    return np.partition(_sides(u, v, 5), 3, axis=0)[3] - 0.34


def _bar(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _box(u, v, 0.98, 0.36)


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _box(u, v, 0.78, 0.78)


def _crescent(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(_radius(u, v) - 0.95, 0.72 - _radius(u - 0.5, v))


def _hexagon(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _sides(u, v, 6).max(axis=0) - 0.8


def _half_disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(_radius(u, v - 0.45) - 0.98, v - 0.45)


def _lens(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(_radius(u, v - 0.6), _radius(u, v + 0.6)) - 1.12


def _ell(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.minimum(_box(u + 0.5, v, 0.33, 0.88), _box(u, v - 0.55, 0.83, 0.33))


def _wave(x: np.ndarray) -> np.ndarray:
    """Triangle wave of period 1 between 0 and 1."""
    return np.abs(2 * (x - np.floor(x)) - 1)


def _hard(x: np.ndarray) -> np.ndarray:
    """Sharpen [0, 1] around a half, with a soft edge."""
    return np.clip((x - 0.5) * 4 + 0.5, 0, 1)


def _stripes(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _hard(_wave(u * rng.uniform(1.3, 2.0) + rng.random()))


def _dots(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    scale, shift = rng.uniform(1.2, 1.8), rng.random()
    x, y = _wave(u * scale + shift), _wave(v * scale + shift)
    return np.clip((_radius(1 - x, 1 - y) - 0.55) * 4 + 0.5, 0, 1)


def _checker(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    scale, shift = rng.uniform(1.0, 1.5), rng.random()
    first, second = _hard(_wave(u * scale + shift)), _hard(_wave(v * scale))
    return first + second - 2 * first * second


def _gradient(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip((u + rng.uniform(0.8, 1.2)) / 2, 0, 1)


def _speckle(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    cells = rng.integers(0, 2, (8, 8)).astype(np.float32)
    rows = np.clip((v + 1) * 4, 0, 7).astype(np.int64)
    return cells[rows, np.clip((u + 1) * 4, 0, 7).astype(np.int64)]


def _zigzag(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _hard(_wave(v * 1.5 + _wave(u * rng.uniform(1.0, 1.4)) + rng.random()))


def _hatching(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    scale = rng.uniform(1.4, 2.0)
    return np.maximum(_hard(_wave(u * scale) - 0.2), _hard(_wave(v * scale) - 0.2))


def _rings(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _hard(_wave(_radius(u, v) * rng.uniform(1.6, 2.2) + rng.random()))


# Shapes and textures occur in several classes from the seventh on, so that neither alone decides.
SCENE_CLASSES = (
    SceneClass("dotted_disc", _disc, _dots, 0),
    SceneClass("striped_triangle", _triangle, _stripes, 120),
    SceneClass("checkered_cross", _cross, _checker, 220),
    SceneClass("graded_ring", _ring, _gradient, 45),
    SceneClass("speckled_star", _star, _speckle, 285),
    SceneClass("zigzag_bar", _bar, _zigzag, 175),
    SceneClass("hatched_square", _square, _hatching, 20),
    SceneClass("striped_crescent", _crescent, _stripes, 250),
    SceneClass("dotted_hexagon", _hexagon, _dots, 85),
    SceneClass("checkered_half_disc", _half_disc, _checker, 320),
    SceneClass("ringed_lens", _lens, _rings, 150),
    SceneClass("speckled_ell", _ell, _speckle, 200),
)


class ObjectPatch(NamedTuple):
    """A drawn object on a square of pixels."""

    color: np.ndarray  # (S, S, 3) float32 in 0..255
    alpha: np.ndarray  # (S, S) float32 in [0, 1]


def draw_object(kind: SceneClass, radius: float, rng: np.random.Generator) -> ObjectPatch:
    """Draw one object of about `radius` pixels, turned, stretched and coloured at random."""
    half = math.ceil(radius * 1.45)
    axis = np.arange(-half, half + 1, dtype=np.float32) / np.float32(radius)
    x, y = np.meshgrid(axis, axis)
    angle, stretch = rng.uniform(0, 2 * math.pi), rng.uniform(0.8, 1.25)
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = (x * cos + y * sin) * stretch, (y * cos - x * sin) / stretch
    alpha = np.clip(0.5 - kind.shape(u, v) * radius, 0, 1).astype(np.float32)
    share = kind.texture(u, v, rng).astype(np.float32)[..., None]
    first, second = _two_colors(kind.hue, rng)
    return ObjectPatch(first + (second - first) * share, alpha)


def _two_colors(hue: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A dark and a light colour near a hue, in either order, as (3,) float32 RGB."""
    dark = hsv_to_rgb(hue + rng.uniform(-30, 30), rng.uniform(0.5, 1.0), rng.uniform(0.15, 0.45))
    light = hsv_to_rgb(hue + rng.uniform(-30, 30), rng.uniform(0.3, 0.9), rng.uniform(0.75, 1.0))
    return (dark, light) if rng.random() < 0.5 else (light, dark)


def hsv_to_rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """Hue in degrees, the others in [0, 1] -> (3,) float32 RGB in 0..255."""
    sector = np.array([5, 3, 1]) + hue / 60
    distance = np.clip(np.minimum(sector % 6, 4 - sector % 6), 0, 1)
    return (255 * value * (1 - saturation * distance)).astype(np.float32)
