#!/usr/bin/env python
"""How fast images are read and augmented, and what annotations cost in memory.

    benchmarks/data_loading.py
    benchmarks/data_loading.py data_loading_augment --images photos/

data_loading_augment: images a second that `DetectionMapper` with DETR's training augmentation makes
of JPEGs in memory, uint8 (3, H, W) out, in one process with one thread. data_loading_pil: the same
against a mapper built as Detectron2 builds its own, on Pillow, with the same augmentation, in turns
with ours. Photographs are those that come with scikit-image and matplotlib, or all of a folder
given with --images; their longer side is scaled to --size pixels.

data_loading_memory: a COCO file of 118,000 images and 860,000 boxes is loaded and read by eight
workers; the memory (PSS) of all nine processes, less the same for a file of eight images without
boxes. The larger of forked and spawned workers. Linux only.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import figures
import numpy as np
import torch
from PIL import Image
from selective_search import photographs, scaled

from predet.d2 import Boxes, Instances
from predet.data.augmentation import DETRAugmentation
from predet.data.dataset import Record
from predet.data.formats import load_dataset
from predet.data.images import decode_image
from predet.data.loader import build_train_loader
from predet.data.mapper import DetectionMapper

SHORT_SIDES, MAX_SIZE = tuple(range(480, 801, 32)), 1333
CROP_SHORT_SIDES, CROP_SIZE = (400, 500, 600), (384, 600)
BOXES_PER_IMAGE, JPEG_QUALITY, IMAGES_A_TURN = 7, 90, 200

IMAGES, BOXES, CLASSES, WORKERS = 118_000, 860_000, 80, 8
BATCHES_READ, BATCH_SIZE = 300, 64


def augment_figure(args: argparse.Namespace) -> figures.Figure:
    speeds = augment_speeds(args.images, args.size, args.turns)
    return {
        "value": speeds["predet"]["median"],
        "unit": "images/s",
        "images_per_second": speeds,
        "target": 400,
        "threads": 1,
    }


def pil_figure(args: argparse.Namespace) -> figures.Figure:
    speeds = augment_speeds(args.images, args.size, args.turns)
    return {
        "ratio": round(speeds["predet"]["median"] / speeds["pillow"]["median"], 3),
        "peer": "a mapper on Pillow, built as Detectron2's",
        "images_per_second": speeds,
        "threads": 1,
    }


@functools.cache
def augment_speeds(folder: str | None, size: int, turns: int) -> dict[str, dict[str, float]]:
    """Images a second; also a second of processor time, which a busy machine disturbs less."""
    figures.set_threads(1)
    jpegs = read_jpegs(folder, size)
    records = [make_record(name, jpegs[name]) for name in jpegs]
    passes = -(-IMAGES_A_TURN // len(records))
    ours = DetectionMapper(
        augmentation=DETRAugmentation(
            short_sides=SHORT_SIDES,
            max_size=MAX_SIZE,
            crop_short_sides=CROP_SHORT_SIDES,
            crop_size=CROP_SIZE,
        ),
        training=True,
    )
    theirs = PillowMapper(jpegs)

    def from_memory(path: str) -> np.ndarray:
        return decode_image(jpegs[path], name=path)

    def speed(mapper: Callable[[Record, np.random.Generator], Any], seed: int) -> list[float]:
        start = [time.perf_counter(), time.process_time()]
        for number in range(passes):
            for index, record in enumerate(records):
                mapper(record, np.random.default_rng([seed, number, index]))
        end = [time.perf_counter(), time.process_time()]
        return [passes * len(records) / (b - a) for a, b in zip(start, end, strict=True)]

    with mock.patch("predet.data.mapper.read_image", from_memory):
        turned = [[*speed(ours, turn), *speed(theirs, turn)] for turn in range(turns + 1)]
    names = ("predet", "predet_processor", "pillow", "pillow_processor")
    return {
        name: figures.spread(values)
        for name, values in zip(names, zip(*turned[1:], strict=True), strict=True)
    }


def read_jpegs(folder: str | None, size: int) -> dict[str, bytes]:
    if folder is None:
        images = dict(photographs([], 0))
    else:
        dataset = load_dataset(folder, format="image_folder")
        images = {r.key: cv2.imread(r.path, cv2.IMREAD_COLOR_RGB) for r in dataset}
    jpegs = {}
    for name, image in images.items():
        bgr = cv2.cvtColor(scaled(image, size), cv2.COLOR_RGB2BGR)
        jpegs[name] = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    sizes = [len(data) for data in jpegs.values()]
    figures.say(f"{len(jpegs)} photographs of {size} pixels, {np.median(sizes) / 1000:.0f} kB")
    return {name: data.tobytes() for name, data in jpegs.items()}


def make_record(name: str, jpeg: bytes) -> Record:
    width, height = Image.open(io.BytesIO(jpeg)).size
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.6, (BOXES_PER_IMAGE, 2))
    high = low + rng.uniform(0.05, 0.4, (BOXES_PER_IMAGE, 2))
    boxes = np.concatenate([low, high], axis=1) * [width, height, width, height]
    return Record(
        key=name,
        path=name,
        image_id=1,
        height=height,
        width=width,
        boxes=boxes.astype(np.float32),
        classes=np.arange(BOXES_PER_IMAGE),
        iscrowd=np.zeros(BOXES_PER_IMAGE, np.bool_),
    )


class PillowMapper:
    """Decode and resize by Pillow, flip and crop in NumPy, boxes along: DETR's augmentation."""

    def __init__(self, jpegs: dict[str, bytes]):
        self.jpegs = jpegs

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, Any]:
        with Image.open(io.BytesIO(self.jpegs[record.path])) as file:
            image = np.asarray(file.convert("RGB"))
        boxes = record.boxes.astype(np.float64)
        if rng.random() < 0.5:
            image = np.flip(image, axis=1)
            boxes = boxes[:, [2, 1, 0, 3]]
            boxes[:, [0, 2]] = image.shape[1] - boxes[:, [0, 2]]
        if rng.random() < 0.5:
            image, boxes = self._resize(image, boxes, rng.choice(CROP_SHORT_SIDES), None)
            image, boxes = self._crop(image, boxes, rng)
        image, boxes = self._resize(image, boxes, rng.choice(SHORT_SIDES), MAX_SIZE)
        height, width = image.shape[:2]
        boxes = boxes.clip(min=0, max=[width, height, width, height])
        kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.as_tensor(boxes[kept], dtype=torch.float32))
        instances.gt_classes = torch.as_tensor(record.classes[kept])
        return {
            "image": torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "instances": instances,
        }

    @staticmethod
    def _resize(
        image: np.ndarray, boxes: np.ndarray, short_side: int, max_size: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        height, width = image.shape[:2]
        scale = short_side / min(height, width)
        if max_size is not None:
            scale = min(scale, max_size / max(height, width))
        size = int(width * scale + 0.5), int(height * scale + 0.5)
        resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
        factors = np.array([size[0] / width, size[1] / height] * 2)
        return np.asarray(resized), boxes * factors

    @staticmethod
    def _crop(
        image: np.ndarray, boxes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        sides = image.shape[:2]
        length = [int(rng.integers(min(s, CROP_SIZE[0]), min(s, CROP_SIZE[1]) + 1)) for s in sides]
        top, left = (int(rng.integers(s - n + 1)) for s, n in zip(sides, length, strict=True))
        return image[top : top + length[0], left : left + length[1]], boxes - [left, top] * 2


def memory_figure(_args: argparse.Namespace) -> figures.Figure:
    gigabytes: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name, size in {"full": (IMAGES, BOXES), "empty": (8, 0)}.items():
            files[name] = Path(folder, f"{name}.json")
            write_annotations(files[name], *size)
        for method in ("fork", "spawn"):
            full, empty = (run_memory(files[name], method) for name in ("full", "empty"))
            gigabytes[method] = round((full - empty) / 1e9, 3)
            figures.say(f"{method}: {full / 1e9:.2f} GB, {empty / 1e9:.2f} GB without annotations")
    return {
        "value": max(gigabytes.values()),
        "unit": "GB",
        "by_start_method": gigabytes,
        "images": IMAGES,
        "boxes": BOXES,
        "workers": WORKERS,
        "target": 1.0,
    }


def write_annotations(path: Path, num_images: int, num_boxes: int) -> None:
    """A COCO file with the names and fields of COCO's own, without polygons."""
    rng = np.random.default_rng(0)
    image_ids = np.sort(rng.permutation(num_images * 5)[:num_images]) + 1
    owners = rng.choice(image_ids, num_boxes)
    boxes = np.round(rng.uniform(1, 300, (num_boxes, 4)), 2)
    categories = rng.integers(1, CLASSES + 1, num_boxes)
    content = {
        "images": [
            {"id": number, "file_name": f"{number:012d}.jpg", "height": 640, "width": 640}
            for number in image_ids.tolist()
        ],
        "categories": [{"id": n, "name": f"class {n}"} for n in range(1, CLASSES + 1)],
        "annotations": [
            {"id": n, "image_id": owner, "category_id": category, "bbox": box, "iscrowd": 0,
             "area": round(box[2] * box[3], 2)}
            for n, (owner, category, box) in enumerate(
                zip(owners.tolist(), categories.tolist(), boxes.tolist(), strict=True), start=1
            )
        ],
    }  # fmt: skip
    path.write_text(json.dumps(content))


def run_memory(annotations: Path, method: str) -> int:
    """Bytes, in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", str(annotations), method]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(answer.stdout)


def memory_of(annotations: str, method: str) -> None:
    """Load, start the workers, read for a while; print the bytes of this process and of theirs."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the loader's: more workers than cores
    multiprocessing.set_start_method(method)
    dataset = load_dataset(annotations, image_root=".")
    loader = build_train_loader(
        dataset=dataset, mapper=pack, total_batch_size=BATCH_SIZE, num_workers=WORKERS, seed=0
    )
    batches = loader.batches(0)
    for _ in range(BATCHES_READ):
        next(batches)
    workers = [process.pid for process in multiprocessing.active_children()]
    assert len(workers) == WORKERS, workers
    print(sum(proportional_memory(pid) for pid in [os.getpid(), *workers]))


def pack(record: Record, _rng: np.random.Generator) -> dict[str, Any]:
    """The annotations of a record, without its image."""
    return {"image_id": record.image_id, "boxes": torch.from_numpy(record.boxes)}


def proportional_memory(pid: int | None) -> int:
    """PSS: pages that several processes share are divided among them."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * int(text.split("\nPss:")[1].split()[0])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory-of"]:
        memory_of(*sys.argv[2:])
    else:
        figures.main(
            __doc__,
            {
                "data_loading_augment": augment_figure,
                "data_loading_pil": pil_figure,
                "data_loading_memory": memory_figure,
            },
            images=None,
            size=500,
            turns=7,
        )
