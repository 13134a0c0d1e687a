"""The lines of YOLO's label files."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

# Annotations may reach over the border a little; beyond this they are no fractions of an image.
_LARGEST = 2.0

_EXPECTED = (
    "expected 'class x y width height' or 'class x1 y1 x2 y2 x3 y3 ...' in fractions of the image"
)


class Label(NamedTuple):
    category: int
    box: tuple[float, float, float, float]  # xyxy in fractions of the image
    line: int  # from 1


def read_labels(path: Path, num_classes: int) -> list[Label]:
    """Read a label file.

    Raises:
        ValueError: Names file and line: what was expected and what was found.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8: {error}") from error
    labels = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}, line {number}"
            category, numbers = _parse(line, where, num_classes)
            labels.append(Label(category, _box(numbers, line, where), number))
    return labels


def _parse(line: str, where: str, num_classes: int) -> tuple[int, list[float]]:
    try:
        category, *numbers = map(float, line.split())
    except ValueError as error:
        raise ValueError(f"{where}: {_EXPECTED}, got {line!r}") from error
    if category not in range(num_classes):
        raise ValueError(
            f"{where}: class must be a whole number in [0, {num_classes}), got {line.split()[0]!r}"
        )
    return int(category), numbers


def _box(numbers: list[float], line: str, where: str) -> tuple[float, float, float, float]:
    if len(numbers) == 5:
        raise ValueError(f"{where}: {_EXPECTED}, got {line!r}: a prediction with its confidence?")
    if len(numbers) < 4 or len(numbers) % 2:
        raise ValueError(f"{where}: {_EXPECTED}, got {line!r}")
    if max(map(abs, numbers)) > _LARGEST:
        raise ValueError(f"{where}: {_EXPECTED}, got {line!r}: are these pixels?")
    if len(numbers) == 4:
        x, y, width, height = numbers
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    xs, ys = numbers[0::2], numbers[1::2]
    return min(xs), min(ys), max(xs), max(ys)
