"""PASCAL VOC: one XML file an image, splits as lists of names.

    JPEGImages/<name>.jpg  Annotations/<name>.xml  ImageSets/Main/<split>.txt

VOC counts pixels from 1 and its corners are pixels inside the box, so that the box in continuous
coordinates is (xmin - 1, ymin - 1, xmax, ymax): DETReg's published code reads it likewise.
A box with xmax <= xmin or ymax <= ymin as written has no area, for no tool writes one for an object
of a single pixel's width. Objects marked difficult are included.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

from predet.data.dataset import DetectionDataset
from predet.data.formats.builder import DatasetBuilder
from predet.data.formats.image_folder import IMAGE_SUFFIXES, list_files


class _Object(NamedTuple):
    name: str
    box: tuple[float, float, float, float]  # absolute xyxy from 0


class _Annotation(NamedTuple):
    height: int
    width: int
    objects: list[_Object]


def detect(path: Path) -> str | None:
    """Why this is a VOC root, or None."""
    if (path / "JPEGImages").is_dir() and (path / "Annotations").is_dir():
        return "JPEGImages/ and Annotations/ lie in it"
    return None


def load(path: Path, *, split: str | None, image_root: Path | None) -> DetectionDataset:
    """Read a split of a VOC root.

    The classes are the names found in all annotation files of the root, sorted, and image ids are
    the positions among them, so that all splits agree (sorted is also the customary order of
    VOC's own 20). Without ImageSets/Main, `split=None` reads all.
    """
    if image_root is not None:
        raise ValueError(
            f"{path}: VOC images lie in JPEGImages/, image_root={image_root} is unused"
        )
    stems = [file.stem for file in list_files(path / "Annotations", ".xml")]
    if not stems:
        raise ValueError(f"{path}: the data set is empty: no *.xml in Annotations/")
    annotations = {stem: _read_xml(path / "Annotations" / f"{stem}.xml") for stem in stems}
    names = sorted({entry.name for found in annotations.values() for entry in found.objects})
    classes = {name: index for index, name in enumerate(names)}
    files = _image_files(path / "JPEGImages")
    image_ids = {stem: number for number, stem in enumerate(stems, start=1)}
    builder = DatasetBuilder(
        name=path.resolve().name + (f"_{split}" if split else ""),
        root=str(path),
        source=str(path),
        class_names=names,
        category_ids=range(1, len(names) + 1),
    )
    for stem in _split_members(path, split, stems):
        found = annotations[stem]
        image = builder.add_image(
            key=f"JPEGImages/{files.get(stem, f'{stem}.jpg')}",
            image_id=image_ids[stem],
            height=found.height,
            width=found.width,
        )
        for number, entry in enumerate(found.objects, start=1):
            builder.add_box(
                image=image,
                box=entry.box,
                category=classes[entry.name],
                label=f"object {number} ({entry.name})",
            )
    return builder.build()


def _split_members(root: Path, split: str | None, stems: list[str]) -> list[str]:
    folder = root / "ImageSets" / "Main"
    splits = [file.stem for file in list_files(folder, ".txt")]
    if split is None:
        if splits:
            raise ValueError(f"{root}: which split? expected one of {splits}, got split=None")
        return stems
    if split not in splits:
        raise ValueError(f"{root}: no split {split!r}: ImageSets/Main/ holds {splits}")
    known = set(stems)
    lines = (folder / f"{split}.txt").read_text(encoding="utf-8-sig").splitlines()
    # The whole line, for a name may hold blanks; in the lists of single classes -1, 0 or 1 follows.
    members = [
        line.strip() if line.strip() in known else line.split()[0] for line in lines if line.strip()
    ]
    missing = sorted(set(members) - known)
    if missing:
        raise ValueError(
            f"{folder / split}.txt: {len(missing)} of {len(members)} images have no annotation "
            f"file, the first is Annotations/{missing[0]}.xml (pass format='image_folder' to read "
            "unlabelled images)"
        )
    return members


def _image_files(folder: Path) -> dict[str, str]:
    files = sorted(entry.name for entry in os.scandir(folder))
    return {
        os.path.splitext(file)[0]: file
        for file in files
        if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES
    }


def _read_xml(path: Path) -> _Annotation:
    """Parse one file. Its own name counts, not <filename>, which tools often leave outdated."""
    try:
        tree = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        size = path.stat().st_size
        raise ValueError(f"{path}: not valid XML: {error} ({size} bytes; truncated?)") from error
    if tree.tag != "annotation":
        raise ValueError(f"{path}: not a VOC file: expected <annotation>, got <{tree.tag}>")
    sizes = [tree.findtext(f"size/{key}") or "0" for key in ("height", "width")]
    objects = [
        _read_object(item, path, number) for number, item in enumerate(tree.findall("object"), 1)
    ]
    try:
        return _Annotation(int(float(sizes[0])), int(float(sizes[1])), objects)
    except ValueError as error:
        raise ValueError(f"{path}: height and width must be whole pixels, got {sizes}") from error


def _read_object(item: ElementTree.Element, path: Path, number: int) -> _Object:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise ValueError(f"{path}: object {number} has no <name>")
    texts = [item.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
    try:
        left, top, right, bottom = (float(text) for text in texts)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: object {number} ({name}): <bndbox> must hold numbers xmin, ymin, xmax, ymax, "
            f"got {texts}"
        ) from error
    # Without area as written: kept so, for the shift by one would give it a pixel's width.
    shift_x, shift_y = float(right > left), float(bottom > top)
    return _Object(name, (left - shift_x, top - shift_y, right, bottom))
