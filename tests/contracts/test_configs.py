"""Every shipped config loads, and its model trains and detects, at reduced width."""

from __future__ import annotations

import ast
import copy
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from predet.checkpoint import load_detector, save_checkpoint
from predet.d2 import Boxes, Instances, instantiate
from predet.data.pretext_mapper import PretextMapper
from predet.data.scenes import make_scenes
from predet.engine.build import build_optimizer, fill_classes
from predet.engine.config import SECTIONS, load_config, require_sections
from predet.engine.config_text import render, save_resolved
from predet.engine.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "configs").rglob("*.py")
    if path.name != "__init__.py"
    and "common" not in path.parts
    and not path.name.startswith("compare_")  # tests/contracts/test_comparisons.py
)
NUM_CLASSES = 3
# What makes a model small, wherever a config has a key of this name.
SMALL = {
    "depth": 18,
    "weights": None,
    "allow_random_frozen": True,
    "allow_random": True,
    "hidden_dim": 32,
    "ffn_dim": 64,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "num_queries": 12,
    "num_one_to_many": 18,
    "neck_channels": 64,
    "representation_size": 64,
    "proposals_train": 100,
    "proposals_test": 100,
    "score_threshold": 0.0,  # fresh weights are certain of nothing
    "detections_per_image": 12,
}
SMALL_SWIN = {"weights": None, "embed_dim": 8, "depths": [1, 2, 1, 1], "num_heads": [1, 1, 2, 2]}


def shrink(node: DictConfig) -> None:
    """Reduce every width below `node`; `allow_random_frozen` is added to backbones."""
    if "embed_dim" in node:
        node.update(SMALL_SWIN)
        return
    if "depth" in node:
        node.allow_random_frozen = True
    for key in list(node.keys()):
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            shrink(child)
        elif key in SMALL and not (key == "weights" and "depth" not in node):
            node[key] = SMALL[key]


def docstring(config: str) -> str:
    """Without line breaks."""
    return " ".join((ast.get_docstring(ast.parse((ROOT / config).read_text())) or "").split())


@functools.cache
def loaded(config: str) -> DictConfig:
    """A config as it is shipped; not to be changed."""
    return load_config(ROOT / config, [])


def small(config: str) -> DictConfig:
    """A copy of a config at reduced width."""
    cfg = copy.deepcopy(loaded(config))
    OmegaConf.set_struct(cfg, False)
    shrink(cfg.model)
    cfg.data.num_classes = NUM_CLASSES
    return cfg


def makes_a_backbone(config: str) -> bool:
    """Whether the model holds no detector: its product is a backbone."""
    try:
        return "image_domain" in str(loaded(config).model._target_)
    except Exception:  # its own test, of loading, says why
        return False


def configs_of_distinct_models() -> list[str]:
    """One config for each model and choice of parameter groups: recipes share many of them."""
    found: dict[str, str] = {}
    for config in CONFIGS:
        try:
            cfg = small(config)
            parts = [cfg.model, cfg.optimizer.params]
            key = repr([OmegaConf.to_container(part) for part in parts])
        except Exception:  # its own test, of loading, says why
            key = config
        found.setdefault(key, config)
    return list(found.values())


DISTINCT = configs_of_distinct_models()


@pytest.fixture(params=[config for config in DISTINCT if not makes_a_backbone(config)])
def small_config(request: pytest.FixtureRequest) -> DictConfig:
    """Of a detector, or of a method that holds one."""
    return small(request.param)


@pytest.fixture(params=[config for config in DISTINCT if makes_a_backbone(config)])
def backbone_config(request: pytest.FixtureRequest) -> DictConfig:
    """Of a method that trains a backbone alone."""
    return small(request.param)


def sample(height: int, width: int, boxes: list[list[float]], classes: list[int]) -> dict:
    rng = np.random.default_rng(height * width)
    pixels = rng.integers(0, 256, (3, height, width), dtype=np.uint8)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    patches = rng.integers(0, 256, (len(boxes), 3, 32, 32), dtype=np.uint8)
    view = {"image": torch.from_numpy(pixels), "instances": instances}
    return {
        **view,
        "views": [view, view],
        "patches": torch.from_numpy(patches),
        "height": 2 * height,
        "width": 2 * width,
        "image_id": 0,
        "file_name": f"{height}x{width}",
    }


def batch() -> list[dict]:
    """Two images of unlike sizes; one of them has no objects."""
    return [
        sample(96, 80, [[8, 8, 40, 50], [30, 20, 70, 90]], [0, 2]),
        sample(64, 96, [], []),
    ]


def test_configs_are_found() -> None:
    assert len(CONFIGS) >= 10


@pytest.mark.parametrize("config", CONFIGS)
def test_config_is_written_as_it_is_shipped_and_has_no_section_that_nobody_reads(
    config: str,
) -> None:
    cfg = loaded(config)
    render(cfg)  # what a run does first; a section left over may refer to what is not there
    further = set(cfg) - set(SECTIONS)
    # Where boxes are of any source, what can be put in their place is in `choices`.
    of_any_source = cfg.dataloader.train.mapper._target_ is PretextMapper
    assert further == ({"choices"} if of_any_source else set())


@pytest.mark.parametrize("config", CONFIGS)
def test_config_loads_and_its_settings_are_valid(config: str) -> None:
    cfg = loaded(config)
    require_sections(cfg)
    settings = TrainSettings.from_config(cfg.train)
    assert settings.max_iter >= 100
    schedule = instantiate(cfg.lr_multiplier)
    assert schedule(0.5) == pytest.approx(1.0)
    last = schedule(1 - 1 / settings.max_iter)
    assert 0 < last < 0.2 or (last == 1 and "the learning rate stays" in docstring(config))
    assert Path(settings.output_dir).name in Path(config).stem or config.startswith("configs/")


def test_small_model_steps(small_config: DictConfig) -> None:
    torch.manual_seed(0)
    model = instantiate(small_config.model).train()
    optimizer = build_optimizer(small_config, model)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    losses = model(batch())
    assert "loss_bbox" in losses
    assert {"loss_class", "loss_contrast"} & set(losses)
    assert all(value.ndim == 0 and value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    optimizer.step()
    moved = [n for n, p in model.named_parameters() if n in before and not p.equal(before[n])]
    # Not all: behind a last layer that starts at zero, the gradient of the first step is zero.
    assert len(moved) > 0.8 * len(before)
    assert all(p.equal(frozen[n]) for n, p in model.named_parameters() if n in frozen)


def test_small_model_trains_without_any_target(small_config: DictConfig) -> None:
    torch.manual_seed(0)
    model = instantiate(small_config.model).train()
    losses = model([sample(64, 96, [], []), sample(96, 64, [], [])])
    total = sum(losses.values())
    assert total.isfinite()
    total.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_small_model_detects_in_the_original_frame(small_config: DictConfig) -> None:
    torch.manual_seed(0)
    model = instantiate(small_config.model).eval()
    with torch.no_grad():
        outputs = model(batch())
    for image, output in zip(batch(), outputs, strict=True):
        instances = output["instances"]
        assert instances.image_size == (image["height"], image["width"])
        assert 0 < len(instances) <= 12 * NUM_CLASSES
        boxes = instances.pred_boxes.tensor
        limit = torch.tensor([image["width"], image["height"]] * 2)
        assert (boxes >= 0).all()
        assert (boxes <= limit).all()
        assert boxes.max() > image["image"].shape[1]  # not in the frame of the resized image
        assert ((instances.scores > 0) & (instances.scores < 1)).all()
        assert ((instances.pred_classes >= 0) & (instances.pred_classes < NUM_CLASSES)).all()


def test_small_model_round_trips_its_state(small_config: DictConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = instantiate(small_config.model).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    torch.manual_seed(1)
    other = instantiate(small_config.model).eval()
    with torch.no_grad():
        expected = model(batch())
        assert not torch.equal(
            expected[0]["instances"].scores, other(batch())[0]["instances"].scores
        )
        other.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True)["model"])
        loaded = other(batch())
    for first, second in zip(expected, loaded, strict=True):
        assert torch.equal(first["instances"].scores, second["instances"].scores)
        assert torch.equal(
            first["instances"].pred_boxes.tensor, second["instances"].pred_boxes.tensor
        )


def test_detector_transfers_out_of_any_model(small_config: DictConfig) -> None:
    """What survives pre-training is the detector, whole, and nothing else."""
    torch.manual_seed(0)
    model = instantiate(small_config.model)
    detector_config = small_config.model.get("detector", small_config.model)
    torch.manual_seed(1)
    detector = instantiate(detector_config)
    load_detector(detector, {"model": model.state_dict()})
    source = getattr(model, "detector", model).state_dict()
    assert source.keys() == detector.state_dict().keys()
    assert all(value.equal(source[name]) for name, value in detector.state_dict().items())


@pytest.mark.parametrize("config", DISTINCT)
def test_resolved_config_builds_the_same_model(config: str, tmp_path: Path) -> None:
    small_config = small(config)
    path = tmp_path / "config.resolved.py"
    save_resolved(small_config, path)
    again = load_config(path, [])
    shapes = [
        {name: tuple(value.shape) for name, value in instantiate(cfg.model).state_dict().items()}
        for cfg in (small_config, again)
    ]
    assert json.dumps(shapes[0]) == json.dumps(shapes[1])


def batch_of_views(cfg: DictConfig, tmp_path: Path) -> list[dict]:
    """Four drawn scenes through the config's own mapper."""
    make_scenes(tmp_path / "scenes", num_images=4, image_size=96, num_classes=2, seed=0)
    cfg.data.view.size = 64
    cfg.data.unlabeled.source = str(tmp_path / "scenes/images")  # without any annotation
    cfg.dataloader.train.total_batch_size = 4
    cfg.dataloader.train.num_workers = 0
    loader = instantiate(cfg.dataloader.train)
    fill_classes(cfg, loader.dataset)
    return next(loader.batches(0))


def test_small_backbone_steps_on_a_folder_of_images(
    backbone_config: DictConfig, tmp_path: Path
) -> None:
    views = batch_of_views(backbone_config, tmp_path)
    torch.manual_seed(0)
    model = instantiate(backbone_config.model).train()
    optimizer = build_optimizer(backbone_config, model)
    losses = model(views)
    assert all(name.startswith("loss_") for name in losses)
    assert all(value.ndim == 0 and value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    moved = [name for name, p in model.named_parameters() if not p.equal(before[name])]
    assert len(moved) > 0.95 * len(before)


def test_small_backbone_encodes_as_its_checkpoint_does(
    backbone_config: DictConfig, tmp_path: Path
) -> None:
    views = batch_of_views(backbone_config, tmp_path)
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(instantiate(backbone_config.model).eval())
    with torch.no_grad():
        first, other = (torch.stack([x["features"] for x in model(views)]) for model in models)
        models[1].load_state_dict(models[0].state_dict())
        loaded_features = torch.stack([x["features"] for x in models[1](views)])
    assert first.shape == (4, sum(models[0].backbone.channels))
    assert first.isfinite().all()
    assert not torch.equal(first, other)
    assert torch.equal(first, loaded_features)


# Each backbone recipe with a detector that its docstring names, or one of the same backbone.
DETECTOR_OF = {
    "configs/image_domain_folder.py": "configs/deformable_detr_folder.py",
    "configs/small/image_domain.py": "configs/small/deformable_detr.py",
    "configs/swav_folder.py": "configs/deformable_detr_folder.py",
    "configs/tiny/image_domain.py": "configs/tiny/deformable_detr.py",
    "configs/tiny/swav.py": "configs/tiny/deformable_detr.py",
}


@pytest.mark.parametrize("config", [config for config in CONFIGS if makes_a_backbone(config)])
def test_backbone_is_what_the_detector_takes(config: str, tmp_path: Path) -> None:
    """At full width: by `model.backbone.weights`, and out of `train.init_checkpoint`."""
    torch.manual_seed(0)
    source = instantiate(loaded(config).model.backbone).state_dict()
    path = tmp_path / "last.pth"
    model = {"backbone." + name: value for name, value in source.items()}
    save_checkpoint(path, {"model": {**model, "local_head.4.bias": torch.zeros(3)}, "ema": {}})
    cfg = small(DETECTOR_OF[config])
    given = copy.deepcopy(loaded(DETECTOR_OF[config]).model.backbone)
    given.weights = str(path)
    backbone = instantiate(given)
    assert backbone.pretrained
    cfg.model.backbone = copy.deepcopy(given)
    cfg.model.backbone.weights, cfg.model.backbone.allow_random_frozen = None, True
    detector = instantiate(cfg.model)
    report = load_detector(detector, path, reinit=("all-but-backbone",))
    assert {name.split(".")[0] for name in report.loaded} == {"backbone"}
    for found in (backbone.state_dict(), detector.backbone.state_dict()):
        assert found.keys() == {name for name in source if name in found}
        assert all(value.equal(source[name]) for name, value in found.items())
    lost = {name for name in source if name not in backbone.state_dict()}
    assert all(name.endswith("num_batches_tracked") for name in lost)
