"""Copies of test images: planted ones are found, other images are not called copies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from predet.data.dataset import DetectionDataset
from predet.data.formats import load_dataset
from predet.data.scenes import make_scenes
from predet.evaluation.leakage import find_copies


def jpeg(quality: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda image: cv2.imdecode(
        cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR
    )


def resized(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda image: cv2.resize(image, None, fx=factor, fy=factor)


CHANGES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "same": (lambda image: image, ""),
    "compressed": (jpeg(30), ""),
    "smaller": (resized(0.5), ""),
    "larger": (resized(1.6), ""),
    "mirrored": (lambda image: cv2.flip(image, 1), "mirrored"),
    "upside_down": (lambda image: cv2.flip(image, 0), "upside down"),
    "turned": (lambda image: cv2.rotate(image, cv2.ROTATE_180), "rotated by 180 degrees"),
    "all": (lambda image: resized(0.7)(jpeg(40)(cv2.flip(image, 1))), "mirrored"),
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    make_scenes(folder, num_images=40, image_size=96, num_classes=4, seed=1, split="test")
    make_scenes(folder, num_images=120, image_size=96, num_classes=4, seed=2, split="train")
    return folder


def folder_of(images: dict[str, np.ndarray], folder: Path) -> DetectionDataset:
    folder.mkdir()
    for name, image in images.items():
        cv2.imwrite(str(folder / f"{name}.png"), image)
    return load_dataset(folder)


def test_planted_copies_are_found_and_nothing_else(scenes: Path, tmp_path: Path) -> None:
    test, train = load_dataset(scenes, split="test"), load_dataset(scenes, split="train")
    planted = {}
    for index, (name, (change, _)) in enumerate(CHANGES.items()):
        planted[name] = change(cv2.imread(test[3 * index].path))
    others = {"train": train, "photos": folder_of(planted, tmp_path / "photos")}
    report = find_copies(test, others)
    assert report.test_images == 40
    assert report.searched == {"train": 120, "photos": len(CHANGES)}
    assert report.unreadable == 0
    found = {copy.key.removesuffix(".png"): copy for copy in report.copies}
    assert set(found) == set(CHANGES)
    for index, (name, (_, how)) in enumerate(CHANGES.items()):
        assert found[name].test_key == test[3 * index].key
        assert found[name].set_name == "photos"
        assert found[name].how == how
        assert found[name].correlation > 0.95


def test_of_several_copies_the_most_alike_is_told(scenes: Path, tmp_path: Path) -> None:
    test = load_dataset(scenes, split="test").select(range(3))
    image = cv2.imread(test[1].path)
    copies = {"a": jpeg(30)(image), "b": image, "c": jpeg(20)(image)}
    photos = folder_of(copies, tmp_path / "photos")
    in_each_set = find_copies(test, {"photos": photos, "more": photos.select([0, 2])}).copies
    by_set = {copy.set_name: copy for copy in in_each_set}
    assert len(by_set) == len(in_each_set) == 2
    assert {copy.test_key for copy in in_each_set} == {test[1].key}
    assert (by_set["photos"].key, by_set["more"].key) == ("b.png", "a.png")
    assert by_set["photos"].correlation > 0.9999


def test_another_image_of_the_same_kind_is_no_copy(scenes: Path, tmp_path: Path) -> None:
    """A part of a test image is not the test image."""
    test = load_dataset(scenes, split="test")
    image = cv2.imread(test[0].path)
    report = find_copies(test, {"parts": folder_of({"part": image[20:, 30:]}, tmp_path / "parts")})
    assert not report.copies


@pytest.mark.parametrize(
    ("contrast", "amplitude"),
    [(1.0, 60), (0.25, 60), (1.0, 10)],
    ids=["fine", "pale", "coarse"],
)
def test_the_same_hash_alone_makes_no_copy(
    tmp_path: Path, contrast: float, amplitude: float
) -> None:
    """As photographs of one microscope: what is coarse is alike, what is fine is not.

    Also where the brightness that all have in common is most of an image, or the coarse part is.
    """
    coarse = contrast * np.random.default_rng(0).normal(0, 25, (6, 6))
    coarse = cv2.resize(coarse, (96, 96), interpolation=cv2.INTER_CUBIC)
    fine = contrast * amplitude * np.cos(2 * np.pi * 12 * (np.arange(96) + 0.5) / 96)
    images = [np.clip(128 + coarse + sign * fine, 0, 255).astype(np.uint8) for sign in (1, -1)]
    first, second = (cv2.img_hash.pHash(image) for image in images)
    assert np.unpackbits(first ^ second).sum() <= 10
    test, train = (
        folder_of({name: image}, tmp_path / name)
        for name, image in zip(("test", "train"), images, strict=True)
    )
    assert not find_copies(test, {"train": train}).copies


def test_unreadable_and_blank_images_do_not_stop_it(scenes: Path, tmp_path: Path) -> None:
    blank = np.full((40, 40, 3), 200, np.uint8)
    others = folder_of({"blank": blank, "broken": blank}, tmp_path / "others")
    (tmp_path / "others" / "broken.png").write_bytes(b"no image")
    report = find_copies(load_dataset(scenes, split="test"), {"others": others})
    assert report.unreadable == 1
    assert not report.copies
