"""Every box source with every target on every detector: one step of pre-training."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from predet.checkpoint import load_detector
from predet.data.augmentation import DETRAugmentation
from predet.data.box_picks import ImportanceSampling, RandomK, TopK
from predet.data.box_sources import AnnotatedBoxes, RandomPatches, SelectiveSearchRegions
from predet.data.box_store import BoxRow
from predet.data.box_store_writer import BoxStoreWriter, StoreInfo
from predet.data.edge_boxes import EdgeBoxes, EdgeBoxSearch
from predet.data.formats import load_dataset
from predet.data.images import read_image
from predet.data.loader import build_train_loader
from predet.data.pretext_mapper import PatchMaker, PretextMapper
from predet.data.pseudo_labels import pseudo_labelled
from predet.data.region_clusters import cluster_store
from predet.data.region_search import RegionSearch
from predet.data.scenes import make_scenes
from predet.data.sources import without_annotations
from predet.data.stored_boxes import RegionsOfOtherImages, StoredBoxes, StoredRegions
from predet.modeling.backbone import ResNet
from predet.ops.selective_search import rank, to_rows
from predet.pretext.feature_target import MeanAbsolute, NormalizedSquared
from predet.pretext.region_encoder import RegionEncoder
from predet.pretext.region_features import RoIAlignFeatures
from predet.pretext.semantic_targets import KeepClasses, Objectness
from predet.projects.detreg import DETReg
from predet.projects.self_training import SelfTraining
from predet.projects.up_detr import UPDETR

K = 5  # boxes of an image: six queries for each are as many as the small H-Deformable DETR has
SEARCH = functools.partial(RegionSearch, mode="single", resize="64x64", min_size=20)
SOURCES = {
    "annotated": lambda _: AnnotatedBoxes(),
    "random_patches": lambda _: RandomPatches(num_patches=K),
    "top_k": lambda _: SelectiveSearchRegions(search=SEARCH(), pick=TopK(K)),
    "random_k": lambda _: SelectiveSearchRegions(search=SEARCH(), pick=RandomK(K)),
    "importance": lambda _: SelectiveSearchRegions(search=SEARCH(), pick=ImportanceSampling(K)),
    "edge_boxes": lambda _: EdgeBoxes(search=EdgeBoxSearch(min_area=50), pick=TopK(K)),
    "stored_regions": lambda stores: StoredRegions(store=stores / "regions", pick=TopK(K)),
    "other_regions": lambda stores: RegionsOfOtherImages(store=stores / "regions", pick=TopK(K)),
    "stored_boxes": lambda stores: StoredBoxes(store=stores / "boxes", pick=TopK(K)),
    # Of a teacher, whose boxes are in the data set; and those of another image.
    "pseudo_boxes": lambda _: AnnotatedBoxes(),
    "shuffled": lambda _: AnnotatedBoxes(),
    # Searched regions, whose classes are clusters of what a backbone sees in them.
    "clustered": lambda _: AnnotatedBoxes(),
}
DATASET_STORES = {"pseudo_boxes": "boxes", "shuffled": "boxes", "clustered": "clusters"}
DETECTORS = ("detr", "deformable", "deformable_two_stage", "h_deformable")


def region_encoder() -> RegionEncoder:
    backbone = ResNet(depth=18, weights=None, norm="gn", freeze_at=0, out_stages=[3])
    return RegionEncoder(backbone=backbone, allow_random=True)


def up_detr(detector: nn.Module, freeze: bool) -> UPDETR:
    deformable = detector.criterion.classification == "focal"
    return UPDETR(
        detector=detector,
        semantic_target=Objectness(),
        num_patches=K,
        add_to="content" if deformable else "position",
        freeze_backbone=freeze,
    )


def det_reg(detector: nn.Module, freeze: bool, target=Objectness, distance=MeanAbsolute) -> DETReg:
    return DETReg(
        detector=detector,
        semantic_target=target(),
        patch_encoder=region_encoder(),
        distance=distance(),
        layers="last" if distance is MeanAbsolute else "all",
        freeze_backbone=freeze,
    )


def self_training(detector: nn.Module, freeze: bool, target=KeepClasses) -> SelfTraining:
    return SelfTraining(detector=detector, semantic_target=target(), freeze_backbone=freeze)


TARGETS = {
    "objectness": functools.partial(self_training, target=Objectness),
    "classes": self_training,
    "reconstruction": up_detr,
    "embedding": det_reg,
    "embedding_and_classes": functools.partial(det_reg, target=KeepClasses),
    "unit_embedding_in_all_layers": functools.partial(det_reg, distance=NormalizedSquared),
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes with annotations of three classes, and a store of each kind for them."""
    folder = tmp_path_factory.mktemp("grid")
    make_scenes(folder / "scenes", num_images=4, image_size=96, num_classes=3, seed=0)
    dataset = load_dataset(folder / "scenes")
    records = [dataset[index] for index in range(len(dataset))]
    regions, boxes = [], []
    for record in records:
        image = read_image(record.path)
        found = SEARCH().regions(image, name=record.key)
        ranked, scores = to_rows(found, rank(found, 0))
        size = image.shape[:2]
        regions.append(BoxRow(record.key, *size, ranked, scores, np.zeros(len(ranked), int)))
        falling = np.linspace(1, 0.5, len(record.boxes), dtype=np.float32)
        boxes.append(BoxRow(record.key, *size, record.boxes, falling, record.classes))
    infos = {
        "regions": StoreInfo(method=SEARCH().method, parameters=SEARCH().parameters),
        "boxes": StoreInfo(method="pseudo_label", class_names=dataset.class_names),
    }
    for name, rows in (("regions", regions), ("boxes", boxes)):
        keys = [record.key for record in records]
        writer = BoxStoreWriter(folder / name, info=infos[name], keys=keys)
        writer.write_shard(0, rows)
        store = writer.finish()
        if name == "regions":
            cluster_store(
                store,
                folder / "clusters",
                dataset=dataset,
                describe=RoIAlignFeatures(encoder=region_encoder(), short_side=96),
                encoder={"weights": "random"},
                num_clusters=3,
                dimensions=4,
            )
    return folder


@pytest.fixture(scope="module")
def batch_of(scenes: Path) -> Callable[[str], list[dict]]:
    """Source -> the first batch of a loader, as training has it; made once."""

    @functools.cache
    def make(source: str) -> list[dict]:
        dataset = load_dataset(scenes / "scenes")
        if source in DATASET_STORES:
            seed = 0 if source == "shuffled" else None
            store = scenes / DATASET_STORES[source]
            dataset = pseudo_labelled(
                dataset, store=store, top_k=K, score_threshold=0.0, shuffle_seed=seed
            )
        elif source != "annotated":
            dataset = without_annotations(dataset)
        augmentation = DETRAugmentation(
            short_sides=[64, 80], max_size=96, crop_short_sides=[72], crop_size=[48, 64]
        )
        mapper = PretextMapper(
            augmentation=augmentation,
            boxes=SOURCES[source](scenes),
            patches=PatchMaker(size=32),
        )
        loader = build_train_loader(
            dataset=dataset, mapper=mapper, total_batch_size=4, num_workers=0, seed=0
        )
        return next(loader.batches(0))

    return make


def grid() -> list:
    """The whole grid, of which one detector for each source and target is not slow."""
    return [
        pytest.param(
            source,
            target,
            detector,
            id=f"{source}-{target}-{detector}",
            marks=() if (row + column) % len(DETECTORS) == place else pytest.mark.slow,
        )
        for row, source in enumerate(SOURCES)
        for column, target in enumerate(TARGETS)
        for place, detector in enumerate(DETECTORS)
    ]


@pytest.mark.parametrize(("source", "target", "detector_name"), grid())
def test_one_step(
    source: str, target: str, detector_name: str, batch_of: Callable, detector: Callable
) -> None:
    batch = [dict(sample, instances=sample["instances"][:K]) for sample in batch_of(source)]
    for sample in batch:  # annotated scenes may have more objects
        sample["patches"] = sample["patches"][:K]
    assert sum(len(sample["instances"]) for sample in batch) >= 4
    torch.manual_seed(0)
    freeze = target != "classes"
    model = TARGETS[target](detector(detector_name), freeze).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = model(batch)
    has_features = target not in ("objectness", "classes")
    assert ("loss_feature" in losses) == has_features
    assert all(value.ndim == 0 and value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    frozen = ("patch_encoder.", "detector.backbone.") if freeze else ("patch_encoder.",)
    assert not any(name.startswith(frozen) for name in moved)
    assert any(name.startswith("detector.transformer.") for name in moved)
    assert any(name.startswith("detector.backbone.") for name in moved) is not freeze
    fresh = detector(detector_name)
    report = load_detector(fresh, {"model": model.state_dict()})
    assert len(report.loaded) == len(fresh.state_dict())
    assert not any(name.startswith("detector.") for name in report.dropped)


def test_boxes_of_another_image_are_another_ones(batch_of: Callable) -> None:
    """The control: places and sizes as they are, on the wrong images."""
    own, others = batch_of("pseudo_boxes"), batch_of("shuffled")
    assert [s["key"] for s in own] == [s["key"] for s in others]
    patches = [torch.cat([s["patches"].float() for s in batch]) for batch in (own, others)]
    assert not any(a.equal(b) for a in patches[0] for b in patches[1])


def test_clusters_are_classes(batch_of: Callable) -> None:
    """More than one of them, as far as the batch goes; the detectors of the grid have three."""
    classes = {
        int(label) for sample in batch_of("clustered") for label in sample["instances"].gt_classes
    }
    assert len(classes) > 1
    assert classes <= {0, 1, 2}
