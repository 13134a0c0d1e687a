#!/usr/bin/env python
"""Where the time of a pre-training step goes, and whether data keeps up with it.

    benchmarks/pretrain_step.py [FIGURE ...] --images photos/ --output benchmarks/results

One figure a method, by its recipe for one's own folder (ResNet-50, the recipe's image sizes, boxes
and patches): `self_training`, `detreg`, `up_detr`, `align_det`. `value` is seconds a step of
--batch images, forward, backward and update, on all cores or the GPU. `parts` are medians in
milliseconds: `backbone` (of images, and of patches where they go through it), `patch_encoder`,
`encoder` and `decoder` of the transformer, `matching`, `rest_of_forward` (heads, losses, moving
data), `backward`, `update`.

`data_ms` is what reading, searching boxes, cutting patches and augmenting cost for each image, on
one core; `data_share` the time that all cores need for a step's data, over the time of the step.
Below 1 a loader with two workers a core keeps up on this machine. On a GPU the cores have nothing
else to do; on a CPU they train, and data takes its share from training.

Photographs are those that come with scikit-image and matplotlib, and up to --count of each folder
given with --images. The backbone has random weights, read as if they were pre-trained: so it is
frozen, as with pre-trained ones.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from figures import Figure, main, milliseconds, spread, synchronize
from omegaconf import OmegaConf
from selective_search import photographs, scaled
from torch import nn
from torchvision.models import resnet50

from predet.d2 import instantiate
from predet.data.dataset import DetectionDataset
from predet.data.formats import load_dataset
from predet.engine.config import load_config
from predet.engine.optim import parameter_groups

RECIPES = {
    "self_training": "configs/selftrain_folder.py",
    "detreg": "configs/detreg_folder.py",
    "up_detr": "configs/updetr_folder.py",
    "align_det": "configs/align_det_folder.py",
}
BOXES, SIDE, STEPS_TO_WARM_UP = 30, 640, 1
PARTS = {
    "backbone": {"forward": "backbone"},
    "patch_encoder": {"forward": "patch_encoder"},
    "transformer": {"encode": "encoder", "decode": "decoder"},
    "matcher": {"forward": "matching"},
}


def figure(name: str, args: argparse.Namespace) -> Figure:
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(Path(folder, "images"), args)
        torch.manual_seed(0)
        torch.save(resnet50(weights=None).state_dict(), weights := Path(folder, "resnet50.pth"))
        config = load_config(
            RECIPES[name],
            [f"model.detector.backbone.weights={weights}", "data.unlabeled.source=unused"],
        )
        OmegaConf.update(config, "data.num_classes", 1, force_add=True)
        model = instantiate(config.model).train()
        read = functools.partial(samples_of, instantiate(config.dataloader.train.mapper), dataset)
        data_ms = [1e3 * seconds for _, seconds in read(args.steps * args.batch, seed=1)]
        batches = [
            [sample for sample, _ in read(args.batch, seed=step)]
            for step in range(args.steps + STEPS_TO_WARM_UP)
        ]
    steps = run_steps(model.to("cuda" if torch.cuda.is_available() else "cpu"), batches)
    wall = statistics.median(step["step"] for step in steps)
    cores = len(os.sched_getaffinity(0))
    return {
        "value": float(f"{wall / 1e3:.4g}"),
        "unit": f"s a step of {args.batch} images",
        "step_ms": spread(step["step"] for step in steps),
        "parts": {
            part: float(f"{statistics.median(step[part] for step in steps):.4g}")
            for part in steps[0]
            if part != "step"
        },
        "data_ms": spread(data_ms),
        "data_share": float(f"{statistics.median(data_ms) * args.batch / cores / wall:.3g}"),
        "steps": args.steps,
        "threads": torch.get_num_threads(),
    }


def make_dataset(folder: Path, args: argparse.Namespace) -> DetectionDataset:
    """Photographs as JPEG files, each with random boxes as a store would have them."""
    folder.mkdir()
    folders = [Path(name) for name in (args.images or "").split(",") if name]
    for index, (_, image) in enumerate(photographs(folders, args.count)):
        pixels = cv2.cvtColor(scaled(image, SIDE), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(folder / f"{index:04d}.jpg"), pixels)
    images = load_dataset(folder)
    corners = np.sort(np.random.default_rng(0).uniform(0, 0.4, (len(images) * BOXES, 2, 2)), axis=1)
    corners[:, 1] += 0.2
    return images.with_annotations(
        name="photographs",
        class_names=("object",),
        category_ids=(1,),
        offsets=np.arange(len(images) + 1) * BOXES,
        boxes=(corners.reshape(-1, 4) * SIDE * 0.6).astype(np.float32),
        classes=np.zeros(len(images) * BOXES, np.int32),
    )


def samples_of(
    mapper: Callable[..., dict], dataset: DetectionDataset, count: int, *, seed: int
) -> Iterator[tuple[dict[str, Any], float]]:
    """Samples, and the processor time that each took."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        record = dataset[int(rng.integers(len(dataset)))]
        start = time.process_time()
        yield mapper(record, rng), time.process_time() - start
    cv2.setNumThreads(threads)


def run_steps(model: nn.Module, batches: list[list[dict[str, Any]]]) -> list[dict[str, float]]:
    """Milliseconds of each part of every step that counts."""
    optimizer = torch.optim.AdamW(parameter_groups(model=model, lr_factors={}), lr=1e-5)
    steps = []
    for batch in batches:
        optimizer.zero_grad()
        losses: dict[str, torch.Tensor] = {}
        with timed_parts(model) as parts:
            forward = milliseconds(lambda: losses.update(model(batch)))  # noqa: B023
        step = dict(parts)
        step["rest_of_forward"] = forward - sum(parts.values())
        step["backward"] = milliseconds(lambda: sum(losses.values()).backward())  # noqa: B023
        step["update"] = milliseconds(optimizer.step)
        step["step"] = forward + step["backward"] + step["update"]
        steps.append(step)
    return steps[STEPS_TO_WARM_UP:]


@contextmanager
def timed_parts(model: nn.Module) -> Iterator[dict[str, float]]:
    """Milliseconds spent in the parts of a model, outermost first: a part in a part is its own."""
    times: dict[str, float] = defaultdict(float)
    running: list[str] = []
    wrapped = []

    def timed(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if running:
                return function(*args, **kwargs)
            running.append(part)
            synchronize()
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                synchronize()
                times[part] += 1e3 * (time.perf_counter() - start)
                running.pop()

        return run

    for name, module in model.named_modules():
        for method, part in PARTS.get(name.rsplit(".", 1)[-1], {}).items():
            setattr(module, method, timed(getattr(module, method), part))
            wrapped.append((module, method))
    try:
        yield times
    finally:
        for module, method in wrapped:
            delattr(module, method)


if __name__ == "__main__":
    main(
        __doc__,
        {name: functools.partial(figure, name) for name in RECIPES},
        images=None,
        count=30,
        batch=4,
        steps=5,
    )
