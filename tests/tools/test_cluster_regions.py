"""From a store and a checkpoint to a store with classes."""

from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType

import pytest
import torch

from predet.checkpoint import save_checkpoint
from predet.d2 import instantiate
from predet.data.box_store import BoxStore
from predet.data.box_store_coco import import_coco
from predet.data.pseudo_labels import pseudo_labelled
from predet.data.scenes import make_scenes
from predet.data.sources import load_images
from predet.engine.config import load_config

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "cluster_regions.py"
CONFIG = str(ROOT / "configs/tiny/image_domain.py")


@pytest.fixture
def scenes(tmp_path: Path) -> list[str]:
    """Arguments that all calls share: a store of the true boxes of six scenes, and the images."""
    truth = make_scenes(tmp_path / "scenes", num_images=6, image_size=64, num_classes=2, seed=0)
    images = str(tmp_path / "scenes")
    import_coco(truth, tmp_path / "store", dataset=load_images(images))
    return [str(tmp_path / "store"), "--images", images, "--config-file", CONFIG, "--clusters", "3"]


@pytest.mark.parametrize("features", ["roi", "crop"])
def test_boxes_get_clusters_that_pretraining_takes_as_classes(
    tool: ModuleType,
    scenes: list[str],
    tmp_path: Path,
    features: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(0)
    backbone = instantiate(load_config(CONFIG, []).model.backbone)
    weights = {"backbone." + name: value for name, value in backbone.state_dict().items()}
    save_checkpoint(tmp_path / "last.pth", {"model": weights})
    options = ["--weights", str(tmp_path / "last.pth"), "--features", features]
    output = tmp_path / "clustered"
    sizes = ["--short-side", "64", "--crop-size", "32"]
    with caplog.at_level(logging.INFO):
        tool.main([*scenes, "--output", str(output), *options, *sizes])
    store = BoxStore(output)
    assert store.class_names == ("cluster 0", "cluster 1", "cluster 2")
    settings = store.meta["parameters"]["clustered"]
    assert settings["encoder"]["weights"].startswith("sha256 ")
    assert settings["encoder"]["features"] == features
    assert "boxes in 3 clusters" in caplog.text
    assert len({int(c) for row in store for c in row.classes}) >= 2
    for row, before in zip(store, BoxStore(scenes[0]), strict=True):
        assert row.boxes.tolist() == before.boxes.tolist()
    dataset = pseudo_labelled(load_images(scenes[2]), store=store)
    assert dataset.class_names == store.class_names


def test_bad_requests_are_one_line(tool: ModuleType, scenes: list[str], tmp_path: Path) -> None:
    output = ["--output", str(tmp_path / "x")]
    with pytest.raises(SystemExit, match="error: the region encoder's ResNet has random weights"):
        tool.main([*scenes, *output])
    sizes = ["--short-side", "64", "--allow-random"]
    with pytest.raises(SystemExit, match=r"error: 900 clusters of \d+ regions are not possible"):
        tool.main([*scenes, *output, *sizes, "--clusters", "900"])
    with pytest.raises(SystemExit, match="error: no box store in"):
        tool.main([str(tmp_path / "none"), *scenes[1:], *output, *sizes])
