"""Small data sets on disk, in every format, with known content."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

BCCD = Path(__file__).parents[3] / "shared" / "data" / "bccd"


@pytest.fixture
def bccd() -> Path:
    """A public set of 364 photographs in VOC format, where it lies beside the repository."""
    if not BCCD.is_dir():
        pytest.skip(f"the photographs of BCCD are not in {BCCD}")
    return BCCD


def write_image(path: Path, *, height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    """Write a PNG of smooth random colours and return it as RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    assert cv2.imwrite(str(path), image[..., ::-1])
    return image


@pytest.fixture(name="write_image")
def write_image_fixture() -> Callable[..., np.ndarray]:
    """`write_image`, for tests to call."""
    return write_image


@pytest.fixture
def coco_content() -> dict[str, Any]:
    """Ids with gaps, a category without boxes, a crowd, an image without boxes, order reversed."""
    return {
        "images": [
            {"id": 30, "file_name": "c.png", "height": 24, "width": 32},
            {"id": 20, "file_name": "sub/b.png", "height": 24, "width": 32},
            {"id": 10, "file_name": "a.png", "height": 24, "width": 32},
        ],
        "categories": [
            {"id": 7, "name": "dog"},
            {"id": 3, "name": "cat"},
            {"id": 90, "name": "emu"},
        ],
        "annotations": [
            {"id": 1, "image_id": 20, "category_id": 7, "bbox": [1, 2, 10, 12], "area": 60.5},
            {"id": 2, "image_id": 10, "category_id": 3, "bbox": [0, 0, 32, 24], "iscrowd": 1},
            {"id": 3, "image_id": 20, "category_id": 3, "bbox": [4.5, 3.25, 6, 5], "iscrowd": 0},
        ],
    }


@pytest.fixture
def write_coco(tmp_path: Path) -> Callable[..., Path]:
    """Write a COCO JSON and its images below a folder; returns the JSON's path."""

    def write(
        content: Any, *, json_name: str = "annotations.json", images: str | None = "."
    ) -> Path:
        root = tmp_path / "coco"
        path = root / json_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        if images is not None and isinstance(content, dict):
            for entry in content.get("images", []):
                write_image(root / images / entry["file_name"], seed=entry["id"])
        return path

    return write


def voc_xml(objects: list[tuple[Any, ...]], *, width: int = 32, height: int = 24) -> str:
    """A VOC annotation; objects are (name, xmin, ymin, xmax, ymax)."""
    parts = [
        f"<object><name>{name}</name><difficult>1</difficult><bndbox><xmin>{x1}</xmin>"
        f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2 in objects
    ]
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>other.jpg</filename>{size}{''.join(parts)}</annotation>"


@pytest.fixture
def voc_root(tmp_path: Path) -> Path:
    """Three images, two splits that do not hold the same classes."""
    root = tmp_path / "voc"
    objects = {
        "one": [("sheep", 1, 1, 32, 24), ("bird", 5, 6, 10, 12)],
        "three": [("bird", 2, 3, 4, 5)],
        "two": [("cat", 3, 4, 20, 20)],
    }
    for number, (stem, entries) in enumerate(objects.items()):
        write_image(root / "JPEGImages" / f"{stem}.png", seed=number)
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{stem}.xml").write_text(voc_xml(entries))
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("two\none\n")
    (root / "ImageSets" / "Main" / "test.txt").write_text("three  1\n\n")
    return root


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Eight images of 24 x 32 pixels in nested folders."""
    root = tmp_path / "images"
    for number in range(8):
        write_image(root / ("first" if number < 5 else "second") / f"{number}.png", seed=number)
    return root
