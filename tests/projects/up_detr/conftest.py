"""A small UP-DETR on any detector, and batches with patches."""

from __future__ import annotations

import pytest
import torch

from predet.pretext.semantic_targets import Objectness
from predet.projects.up_detr import UPDETR


def build_updetr(detector, **options) -> UPDETR:
    """No masking unless asked for; the backbone is trained unless asked for."""
    chosen = {"num_patches": 4, "mask_probability": 0.0, "freeze_backbone": False, **options}
    return UPDETR(detector=detector, semantic_target=Objectness(), **chosen)


@pytest.fixture
def updetr():
    """`updetr(detector, **options)`; see `build_updetr`."""
    return build_updetr


@pytest.fixture
def patch_batch(batch):
    """`patch_batch(counts)`: images with so many boxes, and a patch of noise for each."""

    def build(counts=(4, 4), seed: int = 0) -> list[dict]:
        sizes = ((96, 128), (128, 96), (64, 96))[: len(counts)]
        generator = torch.Generator().manual_seed(seed)
        made = batch(sizes, counts, seed)
        for sample, count in zip(made, counts, strict=True):
            shape = (count, 3, 32, 32)
            sample["patches"] = torch.randint(0, 256, shape, generator=generator).byte()
        return made

    return build
