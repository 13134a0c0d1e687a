"""Every choice of configs/common/pretext.py, put into a recipe and through the loader."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig

from predet.d2 import LazyCall as L
from predet.d2 import instantiate
from predet.data.augmentation import HorizontalFlip
from predet.data.scenes import make_scenes
from predet.engine.config import load_config

ROOT = Path(__file__).resolve().parents[2]
NUM_BOXES = 6
RECIPE = ROOT / "configs/detreg_folder.py"
CHOICES = load_config(RECIPE).choices
RANKED = [name for name, source in CHOICES.boxes.items() if "pick" in source]


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


def pieces(scenes: Path, *overrides: str) -> DictConfig:
    """A full-size recipe, as the command line changes it, on small images."""
    small = [
        "dataloader.train.total_batch_size=6",
        "dataloader.train.num_workers=0",
        "data.patches.size=32",
        f"data.boxes.num={NUM_BOXES}",
        f"data.unlabeled.source={scenes}",
        "train.seed=3",
        "train.on_bad_sample=error",
    ]
    cfg = load_config(RECIPE, [*small, *overrides])
    cfg.dataloader.train.mapper.augmentation = L(HorizontalFlip)()
    return cfg


def boxes_of(name: str) -> str:
    return f"dataloader.train.mapper.boxes=${{choices.boxes.{name}}}"


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


def all_boxes(batch: list[dict]) -> list[list]:
    return [sample["instances"].gt_boxes.tensor.tolist() for sample in batch]


@pytest.mark.parametrize("pick", CHOICES.pick)
@pytest.mark.parametrize("source", RANKED)
def test_ranked_sources(scenes: Path, stores: dict[str, Path], source: str, pick: str) -> None:
    needs_a_store = [f"data.store={stores['regions']}"] if source == "other_regions" else []
    picked = f"dataloader.train.mapper.boxes.pick=${{choices.pick.{pick}}}"
    cfg = pieces(scenes, boxes_of(source), picked, *needs_a_store)
    check(first_batch(cfg), NUM_BOXES)


def test_boxes_at_random_places(scenes: Path) -> None:
    check(first_batch(pieces(scenes, boxes_of("random_patches"))), NUM_BOXES)


def test_regions_are_those_of_the_store_that_is_given(scenes: Path, stores) -> None:
    """The same ones of a store of the same search; others of a store of something else."""
    searched = first_batch(pieces(scenes))
    stored = first_batch(pieces(scenes, f"data.store={stores['regions']}"))
    edges = first_batch(pieces(scenes, f"data.store={stores['edges']}"))
    check(searched, NUM_BOXES)
    check(edges, NUM_BOXES)
    assert all_boxes(searched) == all_boxes(stored)
    online = first_batch(pieces(scenes, boxes_of("edge_boxes")))
    assert all_boxes(edges) == all_boxes(online) != all_boxes(searched)
    search = "dataloader.train.mapper.boxes.search.resize=64x64"
    other_search = pieces(scenes, f"data.store={stores['regions']}", search)
    with pytest.raises(ValueError, match="resize: expected '64x64', got '128x128'"):
        first_batch(other_search)


@pytest.mark.parametrize("dataset", CHOICES.dataset)
def test_boxes_of_the_data_set(scenes: Path, stores: dict[str, Path], dataset: str) -> None:
    chosen = f"dataloader.train.dataset=${{choices.dataset.{dataset}}}"
    cfg = pieces(scenes, chosen, boxes_of("of_dataset"), f"data.store={stores['regions']}")
    if dataset == "without_annotations":
        with pytest.raises(ValueError, match="has no annotations, but its own boxes are asked for"):
            first_batch(cfg)
        return
    check(first_batch(cfg), None if dataset == "annotated" else NUM_BOXES)


@pytest.mark.parametrize("chosen", ["boxes.other_regions", "dataset.of_a_store"])
def test_a_store_that_is_not_named(scenes: Path, chosen: str) -> None:
    kind, _, name = chosen.partition(".")
    place = "mapper.boxes" if kind == "boxes" else "dataset"
    cfg = pieces(scenes, f"dataloader.train.{place}=${{choices.{kind}.{name}}}")
    with pytest.raises(ValueError, match=r"no box store is named: .*data\.store"):
        first_batch(cfg)


def test_the_controls_boxes_are_those_of_other_images(scenes: Path, stores) -> None:
    boxes = []
    for dataset in ("of_a_store", "of_other_images"):
        cfg = pieces(scenes, f"data.store={stores['regions']}")
        made = instantiate(cfg.choices.dataset[dataset])
        boxes.append([made[i].boxes.tolist() for i in range(len(made))])
    assert all(own != other for own, other in zip(*boxes, strict=True))
    assert sorted(boxes[0]) == sorted(boxes[1])  # equal sizes here: nothing is scaled
