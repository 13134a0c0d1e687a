"""Every box source of configs/common/pretext.py, out of the config and through the loader."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from predet.d2 import LazyConfig, instantiate
from predet.data.scenes import make_scenes

ROOT = Path(__file__).resolve().parents[2]
NUM_BOXES = 6
ONLINE = ["selective_search", "edge_boxes", "random_patches"]
STORED = ["stored_regions", "other_regions", "stored_boxes"]
DATASETS = ["annotated", "of_a_store", "of_other_images"]
PICKS = ["top_k", "random_k", "importance"]
PIECES = ["data", "dataloader", "dataset_boxes", *ONLINE, *STORED, *DATASETS, *PICKS]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    make_scenes(folder, num_images=6, image_size=96, num_classes=2, seed=0)
    return folder


@pytest.fixture(scope="module")
def stores(scenes: Path) -> dict[str, Path]:
    """One of Selective Search by DETReg's recipe, one of EdgeBoxes."""
    path = ROOT / "tools" / "extract_proposals.py"
    spec = importlib.util.spec_from_file_location("extract_proposals", path)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = tool  # where its dataclasses look for their module
    spec.loader.exec_module(tool)
    found = {}
    for name, options in {"regions": "--recipe=detreg", "edges": "--method=edge_boxes"}.items():
        found[name] = scenes / name
        tool.main([f"--images={scenes}", f"--output={found[name]}", "--workers=0", options])
    return found


def pieces(scenes: Path, store: Path | str = "unused") -> DictConfig:
    loaded = LazyConfig.load(str(ROOT / "configs/common/pretext.py"))
    cfg = OmegaConf.create({name: loaded[name] for name in PIECES}, flags={"allow_objects": True})
    cfg.train = {"seed": 3, "on_bad_sample": "error"}
    cfg.data.unlabeled.source = str(scenes)
    cfg.data.store = str(store)
    cfg.data.boxes.num = NUM_BOXES
    cfg.data.patches.size = 32
    cfg.dataloader.train.total_batch_size, cfg.dataloader.train.num_workers = 6, 0
    cfg.dataloader.train.mapper.augmentation = {
        "_target_": "predet.data.augmentation.HorizontalFlip",
    }
    return cfg


def first_batch(cfg: DictConfig) -> list[dict]:
    loader = instantiate(cfg.dataloader.train)
    stream = loader.batches(0)
    batch = next(stream)
    stream.close()
    assert loader.dataset.class_names
    return batch


def check(batch: list[dict], num_boxes: int | None) -> None:
    for sample in batch:
        count = len(sample["instances"])
        assert count == len(sample["patches"]) > 0
        assert tuple(sample["patches"].shape[1:]) == (3, 32, 32)
        if num_boxes is not None:
            assert count == num_boxes
            assert not sample["instances"].gt_classes.any()


@pytest.mark.parametrize("source", ONLINE)
def test_online_sources(scenes: Path, source: str) -> None:
    cfg = pieces(scenes)
    cfg.dataloader.train.mapper.boxes = cfg[source]
    check(first_batch(cfg), NUM_BOXES)


@pytest.mark.parametrize("pick", PICKS)
@pytest.mark.parametrize("source", STORED)
def test_stored_sources(scenes: Path, stores: dict[str, Path], source, pick) -> None:
    cfg = pieces(scenes, stores["edges" if source == "stored_boxes" else "regions"])
    cfg.dataloader.train.mapper.boxes = cfg[source]
    cfg.dataloader.train.mapper.boxes.pick = cfg[pick]
    check(first_batch(cfg), NUM_BOXES)


@pytest.mark.parametrize("dataset", DATASETS)
def test_boxes_of_the_data_set(scenes: Path, stores: dict[str, Path], dataset: str) -> None:
    cfg = pieces(scenes, stores["regions"])
    cfg.dataloader.train.dataset = cfg[dataset]
    cfg.dataloader.train.mapper.boxes = cfg.dataset_boxes
    check(first_batch(cfg), None if dataset == "annotated" else NUM_BOXES)


def test_the_controls_boxes_are_those_of_other_images(scenes: Path, stores) -> None:
    boxes = []
    for dataset in ("of_a_store", "of_other_images"):
        cfg = pieces(scenes, stores["regions"])
        made = instantiate(cfg[dataset])
        boxes.append([made[i].boxes.tolist() for i in range(len(made))])
    assert all(own != other for own, other in zip(*boxes, strict=True))
    assert sorted(boxes[0]) == sorted(boxes[1])  # equal sizes here: nothing is scaled
