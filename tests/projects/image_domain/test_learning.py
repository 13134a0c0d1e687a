"""A short run beats the random backbone by nearest neighbours of regions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from image_domain_parts import WEIGHTS, conv
from torch import Tensor, nn

from predet.data.formats import load_dataset
from predet.data.loader import build_train_loader
from predet.data.scenes import make_scenes
from predet.data.views import ColorJitter, MultiViewMapper, RandomView
from predet.evaluation.regions import balanced_accuracy, encoded, knn_classes, region_crops
from predet.layers.norm import group_norm
from predet.projects.image_domain import DenseContrast

STEPS, SEEDS = 120, (0, 1, 2)


class ThreeStages(nn.Module):
    channels, strides = (32, 64, 128), (4, 8, 16)

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *self.channels)
        self.stages = nn.ModuleList(
            nn.Sequential(conv(before, after, kernel), group_norm(after), nn.ReLU())
            for before, after, kernel in zip(widths, widths[1:], (7, 3, 3), strict=False)
        )

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        maps = [pixels]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return tuple(maps[1:])


def accuracy(method: DenseContrast, memory, queries) -> float:
    """Of the last map, in percent."""
    method.eval()
    last = ThreeStages.channels[-1]
    known, asked = (
        encoded(part.crops, lambda crops: method.encode(list(crops)))[:, -last:]
        for part in (memory, queries)
    )
    found = knn_classes(known, memory.classes, asked)
    return 100 * balanced_accuracy(found, queries.classes)


@pytest.mark.slow
def test_a_short_run_beats_the_random_backbone(tmp_path: Path) -> None:
    counts = {"unlabeled": 200, "train": 80, "test": 80}
    for split, count in counts.items():
        make_scenes(tmp_path, num_images=count, image_size=96, num_classes=6, seed=5, split=split)
    sets = {split: load_dataset(tmp_path, split=split) for split in counts}
    queries = region_crops(sets["test"], size=48, max_per_class=None, seed=0)
    gains = []
    for seed in SEEDS:
        memory = region_crops(sets["train"], size=48, max_per_class=30, seed=seed)
        torch.manual_seed(seed)
        method = DenseContrast(backbone=ThreeStages(), weights=WEIGHTS)
        before = accuracy(method, memory, queries)
        train(method.train(), sets["unlabeled"], seed)
        gains.append(accuracy(method, memory, queries) - before)
    assert np.mean(gains) > 8, gains
    assert min(gains) > 4, gains


def train(method: DenseContrast, dataset, seed: int) -> None:
    view = RandomView(size=48, area=(0.1, 0.6), photometric=[ColorJitter()])
    loader = build_train_loader(
        dataset=dataset,
        mapper=MultiViewMapper(views=[view, view]),
        total_batch_size=16,
        num_workers=0,
        seed=seed,
    )
    optimizer = torch.optim.AdamW(method.parameters(), lr=2e-3)
    for _, batch in zip(range(STEPS), loader.batches(0), strict=False):
        loss = sum(method(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
