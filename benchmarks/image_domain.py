#!/usr/bin/env python
"""Methods of image-domain pre-training after equal time: nearest neighbours of regions.

    benchmarks/image_domain.py --output benchmarks/results [--data DATA] [--budget 40]

One figure for each of random weights, contrast (configs/tiny/image_domain.py) and SwAV
(configs/tiny/swav.py): balanced accuracy in percent of 10 nearest neighbours among crops of
annotated regions (predet/evaluation/regions.py), all maps together; `maps` has each one, `spread`
the standard deviation over --seeds, which draw weights, views and memory. The value to beat is the
random backbone's. Training takes --budget seconds of processor time a seed, data included, on one
thread, so others at work on the machine do not count; `steps` says how many there were.

DATA is a labelled data set with the splits train and test; by default scenes are drawn.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from figures import Figure, main, say, set_threads
from torch import nn

from predet.d2 import LazyCall, instantiate
from predet.data.dataset import DetectionDataset
from predet.data.formats import load_dataset
from predet.data.scenes import make_scenes
from predet.data.sources import load_images
from predet.engine import TrainSettings, load_config
from predet.engine.build import build_model, build_optimizer
from predet.engine.step import OptimizerStep
from predet.engine.stopping import StopRequest
from predet.evaluation.regions import balanced_accuracy, encoded, knn_classes, region_crops

CONFIGS = Path(__file__).parents[1] / "configs/tiny"
CROP, PER_CLASS = 64, 100
FOREVER = 1_000_000  # steps: time ends a run


def figure(args: argparse.Namespace, *, config: str, trained: bool) -> Figure:
    set_threads(1)
    found: list[dict[str, float]] = []
    steps: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        source = args.data or drawn(Path(folder))
        data = {split: load_dataset(source, split=split) for split in ("train", "test")}
        for seed in range(args.seeds):
            model, count = train(config, source, seed, args.budget if trained else 0, Path(folder))
            found.append(accuracies(model, data, seed))
            steps.append(count)
            say(f"seed {seed}: {found[-1]} after {count} steps")
    maps = {name: round(statistics.mean(row[name] for row in found), 1) for name in found[0]}
    return {
        "value": maps["all"],
        "unit": "% balanced accuracy",
        "spread": round(statistics.stdev([row["all"] for row in found]), 1)
        if args.seeds > 1
        else 0,
        "maps": maps,
        "seeds": args.seeds,
        "steps": steps,
        "budget_s": args.budget if trained else 0,
        "data": Path(args.data).name if args.data else "drawn scenes",
    }


def drawn(folder: Path) -> str:
    """1000 scenes to train on and to remember, 200 to ask for."""
    scenes = folder / "scenes"
    for split, count in (("train", 1000), ("test", 200)):
        make_scenes(scenes, num_images=count, image_size=128, num_classes=6, seed=0, split=split)
    return str(scenes)


def train(
    config: str, source: str, seed: int, budget: float, folder: Path
) -> tuple[nn.Module, int]:
    """The method after so many seconds of processor time, and its steps."""
    cfg = load_config(CONFIGS / f"{config}.py", [f"train.seed={seed}", "train.device=cpu"])
    cfg.dataloader.train.dataset = LazyCall(load_images)(source=source, split="train")
    cfg.dataloader.train.num_workers = 0
    cfg.train.max_iter = cfg.lr_multiplier.max_iter = FOREVER
    cfg.lr_multiplier.drop_steps = []
    cfg.train.output_dir = str(folder)
    settings = TrainSettings.from_config(cfg.train)
    model = build_model(cfg, settings, torch.device("cpu"))
    steps = OptimizerStep(
        model=model,
        optimizer=build_optimizer(cfg, model),
        schedule=instantiate(cfg.lr_multiplier),
        settings=settings,
        stop=StopRequest(),
    )
    steps.wrap()
    batches = instantiate(cfg.dataloader.train).batches(0)
    count, start = 0, time.process_time()
    while time.process_time() - start < budget:
        steps.run(count, [next(batches)])
        count += 1
    batches.close()
    return model.eval(), count


def accuracies(model: nn.Module, data: dict[str, DetectionDataset], seed: int) -> dict[str, float]:
    """In percent, for each map of the backbone by its stride, and for all together."""
    memory = region_crops(data["train"], size=CROP, max_per_class=PER_CLASS, seed=seed)
    queries = region_crops(data["test"], size=CROP, max_per_class=PER_CLASS, seed=0)
    known, asked = (
        encoded(regions.crops, lambda crops: model.encode(list(crops)))
        for regions in (memory, queries)
    )
    ends = np.cumsum([0, *model.backbone.channels]).tolist()
    parts = {
        f"stride {stride}": slice(*ends[index : index + 2])
        for index, stride in enumerate(model.backbone.strides)
    }
    return {
        name: 100
        * balanced_accuracy(
            knn_classes(known[:, part], memory.classes, asked[:, part]), queries.classes
        )
        for name, part in {**parts, "all": slice(None)}.items()
    }


if __name__ == "__main__":
    main(
        __doc__,
        {
            "random": functools.partial(figure, config="image_domain", trained=False),
            "contrast": functools.partial(figure, config="image_domain", trained=True),
            "swav": functools.partial(figure, config="swav", trained=True),
        },
        data=None,
        budget=40.0,
        seeds=3,
    )
