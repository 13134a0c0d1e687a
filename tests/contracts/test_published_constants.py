"""The recipes carry the constants of the authors' code; the numbers here are theirs, by hand."""

from __future__ import annotations

import ast
import copy
import hashlib
import inspect
import re
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from predet.d2 import instantiate
from predet.data.augmentation import DETRAugmentation, ResizeShortSide
from predet.data.sources import without_annotations
from predet.engine.config import load_config
from predet.pretext.feature_target import MeanAbsolute
from predet.pretext.region_encoder import RegionEncoder
from predet.pretext.semantic_targets import Objectness
from predet.projects.detreg import DETReg

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
COCO, VOC, O365, IN1K = 118_287, 16_551, 1_742_289, 1_281_167  # images
IN100 = 126_689  # of the 100 classes of DETReg's list

DETR_MODEL = {
    "transformer.hidden_dim": 256,
    "transformer.num_heads": 8,
    "transformer.num_encoder_layers": 6,
    "transformer.num_decoder_layers": 6,
    "transformer.ffn_dim": 2048,
    "transformer.dropout": 0.1,
    "num_queries": 100,
    "backbone.norm": "frozen_bn",
    "backbone.freeze_at": 2,
    "criterion.matcher.classification": "softmax",
    "criterion.matcher.class_cost": 1,
    "criterion.matcher.bbox_cost": 5,
    "criterion.matcher.giou_cost": 2,
    "criterion.weights": {"loss_class": 1, "loss_bbox": 5, "loss_giou": 2},
    "criterion.no_object_weight": 0.1,
}
DEFORMABLE_MODEL = {
    **{key: DETR_MODEL[key] for key in DETR_MODEL if key.startswith(("transformer", "backbone"))},
    "transformer.ffn_dim": 1024,
    "transformer.num_levels": 4,
    "queries.num_queries": 300,
    "backbone.out_stages": [3, 4, 5],
    "criterion.matcher.classification": "focal",
    "criterion.matcher.class_cost": 2,
    "criterion.matcher.bbox_cost": 5,
    "criterion.matcher.giou_cost": 2,
    "criterion.weights": {"loss_class": 2, "loss_bbox": 5, "loss_giou": 2},
    "top_k": 100,
}
H_DEFORMABLE_MODEL = {
    **DEFORMABLE_MODEL,
    "transformer.ffn_dim": 2048,
    "transformer.dropout": 0,
    "queries.num_one_to_many": 1500,
    "criterion.copies": 6,
    "criterion.one_to_many_weight": 1,
    "with_box_refine": True,
    "look_forward_twice": True,
}
H_SWIN_MODEL = {
    key: value
    for key, value in H_DEFORMABLE_MODEL.items()
    if key not in ("backbone.norm", "backbone.freeze_at")
} | {"backbone.freeze_at": 0, "backbone.window_size": 7}
SWIN_T = {"backbone.embed_dim": 96, "backbone.depths": [2, 2, 6, 2], "backbone.drop_path": 0.2}
SWIN_L = {"backbone.embed_dim": 192, "backbone.depths": [2, 2, 18, 2], "backbone.drop_path": 0.2}
MODELS = {
    "detr_r50_coco_300ep": DETR_MODEL,
    "deformable_detr_r50_coco_50ep": {**DEFORMABLE_MODEL, "with_box_refine": False},
    "deformable_detr_refined_r50_coco_50ep": {**DEFORMABLE_MODEL, "with_box_refine": True},
    "deformable_detr_two_stage_r50_coco_50ep": {**DEFORMABLE_MODEL, "with_box_refine": True},
    "h_deformable_detr_r50_coco_12ep": H_DEFORMABLE_MODEL,
    "h_deformable_detr_r50_coco_36ep": H_DEFORMABLE_MODEL,
    "h_deformable_detr_swin_t_coco_12ep": {**H_SWIN_MODEL, **SWIN_T},
    "h_deformable_detr_swin_t_coco_36ep": {**H_SWIN_MODEL, **SWIN_T},
    "h_deformable_detr_swin_l_coco_12ep": {**H_SWIN_MODEL, **SWIN_L},
    "h_deformable_detr_swin_l_coco_36ep": {
        **H_SWIN_MODEL, **SWIN_L, "backbone.drop_path": 0.5,
    },
    "h_deformable_detr_swin_l_900q_coco_36ep": {
        **H_SWIN_MODEL, **SWIN_L, "backbone.drop_path": 0.5, "queries.num_queries": 900,
        "top_k": 300,
    },
}  # fmt: skip


def value_at(cfg: DictConfig, dotted: str) -> object:
    for part in dotted.split("."):
        assert part in cfg, f"{dotted}: nothing is called {part}"
        cfg = cfg[part]
    return cfg


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    model = load_config(CONFIGS / f"{name}.py", []).model
    for key, expected in MODELS[name].items():
        assert value_at(model, key) == expected, key


BACKBONE, OFFSETS = {"backbone": 0.1}, {"sampling_offsets": 0.1}
ONE_STAGE = {**BACKBONE, **OFFSETS, "reference_points": 0.1}
TWO_STAGE = {**BACKBONE, **OFFSETS}
FROZEN = {**OFFSETS, "reference_points": 0.1}  # one-stage, without a backbone that learns
# Images, batch, epochs, epoch of the drop if any, learning rate, factors of single parts.
SCHEDULES = {
    "detr_r50_coco_150ep": (COCO, 16, 150, 100, 1e-4, BACKBONE),
    "detr_r50_coco_300ep": (COCO, 16, 300, 200, 1e-4, BACKBONE),
    "detr_r50_coco_500ep": (COCO, 16, 500, 400, 1e-4, BACKBONE),
    "detr_r50_voc_150ep": (VOC, 16, 150, 100, 1e-4, BACKBONE),
    "detr_r50_voc_300ep": (VOC, 16, 300, 200, 1e-4, BACKBONE),
    "deformable_detr_r50_coco_50ep": (COCO, 32, 50, 40, 2e-4, ONE_STAGE),
    "deformable_detr_refined_r50_coco_50ep": (COCO, 32, 50, 40, 2e-4, ONE_STAGE),
    "deformable_detr_two_stage_r50_coco_50ep": (COCO, 32, 50, 40, 2e-4, TWO_STAGE),
    "deformable_detr_r50_voc_100ep": (VOC, 32, 100, 70, 2e-4, ONE_STAGE),
    "deformable_detr_refined_r50_voc_100ep": (VOC, 32, 100, 70, 2e-4, ONE_STAGE),
    "deformable_detr_two_stage_r50_voc_100ep": (VOC, 32, 100, 70, 2e-4, TWO_STAGE),
    "selftrain_o365": (O365, 32, 5, 4, 2e-4, OFFSETS),
    "selftrain_in1k": (IN1K, 32, 5, 4, 2e-4, OFFSETS),
    "selftrain_h_deformable_swin_l_o365": (O365, 16, 5, 4, 2e-4, OFFSETS),
    "selftrain_h_deformable_r50_o365": (O365, 16, 5, 4, 2e-4, OFFSETS),
    "h_deformable_detr_swin_l_900q_coco_36ep": (COCO, 16, 36, 30, 2e-4, TWO_STAGE),
    "updetr_in1k": (IN1K, 32 * 8, 60, 40, 1e-4, {}),
    "updetr_finetune_coco_150ep": (COCO, 16, 150, 100, 1e-4, {"backbone": 0.5}),
    "updetr_finetune_coco_300ep": (COCO, 16, 300, 200, 1e-4, {"backbone": 0.5}),
    "updetr_finetune_voc_150ep": (VOC, 16, 150, 100, 1e-4, {"backbone": 0.5}),
    "updetr_finetune_voc_300ep": (VOC, 16, 300, 200, 1e-4, {"backbone": 0.5}),
    "align_det_finetune_detr_r50_coco_150ep": (COCO, 16, 150, 100, 1e-4, BACKBONE),
    "align_det_finetune_deformable_detr_r50_coco_50ep": (COCO, 32, 50, 40, 2e-4, ONE_STAGE),
    "detreg_in100": (IN100, 24 * 8, 50, 40, 2e-4, FROZEN),
    "detreg_in1k": (IN1K, 24 * 8, 5, None, 2e-4, FROZEN),
    "detreg_coco": (COCO, 24 * 8, 50, 40, 2e-4, FROZEN),
    "detreg_detr_in1k": (IN1K, 24 * 8, 60, None, 1e-4, {}),
    "detreg_finetune_detr_coco_300ep": (COCO, 16, 300, 200, 1e-4, BACKBONE),
    "detreg_finetune_coco_50ep": (COCO, 4 * 8, 50, 40, 2e-4, ONE_STAGE),
    "detreg_finetune_voc_100ep": (VOC, 4 * 8, 100, 70, 2e-4, ONE_STAGE),
    "detreg_finetune_voc_10pct_200ep": (VOC // 10, 4 * 2, 200, 150, 2e-4, ONE_STAGE),
    "detreg_finetune_coco_1pct_2000ep": (1_183, 3 * 8, 2000, None, 2e-4, ONE_STAGE),
    "detreg_finetune_coco_2pct_1000ep": (2_366, 3 * 8, 1000, None, 2e-4, ONE_STAGE),
    "detreg_finetune_coco_5pct_500ep": (5_914, 3 * 8, 500, None, 2e-4, ONE_STAGE),
    "detreg_finetune_coco_10pct_400ep": (11_829, 3 * 8, 400, None, 2e-4, ONE_STAGE),
} | {
    f"h_deformable_detr_{backbone}_{data}_{epochs}ep": (images, 16, epochs, drop, 2e-4, TWO_STAGE)
    for backbone in ("r50", "swin_t", "swin_l")
    for data, images in (("coco", COCO), ("voc", VOC))
    for epochs, drop in ((12, 11), (36, 30))
}
LARGE_DECAY = ("h_deformable_detr_swin_l_900q_coco_36ep", "selftrain_h_deformable_swin_l_o365")


def test_every_recipe_with_epochs_is_listed() -> None:
    recipes = {
        path.stem for path in CONFIGS.glob("*.py") if "Schedule:" in (docstring(path.stem) or "")
    }
    of_papers = {path.stem for path in CONFIGS.glob("*.py") if re.search(r"\d+ep$", path.stem)}
    assert recipes == set(SCHEDULES)
    assert of_papers <= recipes


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str) -> None:
    images, batch, epochs, drop, lr, factors = SCHEDULES[name]
    cfg = load_config(CONFIGS / f"{name}.py", [])
    steps = images // batch  # the authors drop the batch that is not full
    assert cfg.dataloader.train.total_batch_size == batch
    assert cfg.train.max_iter == epochs * steps
    schedule = instantiate(cfg.lr_multiplier)
    if drop is None:
        assert [schedule(part) for part in (0, 0.5, 1)] == [1, 1, 1]
    else:
        at = [schedule(epoch / epochs) for epoch in (0, drop - 0.5, drop + 0.5, epochs - 0.5)]
        assert at == pytest.approx([1, 1, 0.1, 0.1])
        assert schedule(drop / epochs) == pytest.approx(0.1)
    assert cfg.optimizer.lr == lr
    assert cfg.optimizer.weight_decay == (0.05 if name in LARGE_DECAY else 1e-4)
    assert cfg.optimizer.params.lr_factors == factors
    assert "no_weight_decay" not in cfg.optimizer.params
    assert cfg.train.clip_grad_norm == 0.1
    assert cfg.train.output_dir == f"output/{name}"
    if name == "updetr_in1k":
        return  # images of its own: test_updetr
    if cfg.dataloader.evaluator is not None:
        resize = cfg.dataloader.test.mapper.augmentation
        assert (resize.short_sides, resize.max_size) == ([800], 1333)
    assert cfg.dataloader.train.mapper.augmentation._target_ is DETRAugmentation


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_arithmetic_of_docstrings(name: str) -> None:
    """What a recipe says of its length is right, and is what it does."""
    text = " ".join((docstring(name) or "").split())
    found = re.search(
        r"Schedule: ([\d_]+) epochs x ([\d_]+) steps \(([\d_]+) images in batches of (\d+)\) = "
        r"([\d_]+) steps; (?:a tenth of the learning rate after (\d+) epochs = ([\d_]+) steps|"
        r"the learning rate stays)",
        text,
    )
    assert found, f"no schedule in {text}"
    epochs, epoch, images, batch, steps = map(int, found.groups()[:5])
    drop, drop_step = (part and int(part) for part in found.groups()[5:])
    assert (images, batch, epochs, drop) == SCHEDULES[name][:4]
    assert epoch == images // batch
    assert steps == epochs * epoch
    drop_steps = [] if drop is None else [drop * epoch]
    assert drop_steps == ([] if drop is None else [drop_step])
    cfg = load_config(CONFIGS / f"{name}.py", [])
    assert cfg.train.max_iter == cfg.lr_multiplier.max_iter == steps
    assert cfg.lr_multiplier.drop_steps == drop_steps
    assert steps % cfg.train.eval_period == 0


@pytest.mark.parametrize("name", [n for n in SCHEDULES if "_voc_" in n and "detreg" not in n])
def test_voc_recipes_are_those_of_coco_on_other_data(name: str) -> None:
    cfg = load_config(CONFIGS / f"{name}.py", [])
    coco = name.replace("_voc_100ep", "_voc_50ep").replace("_voc_", "_coco_")
    other = load_config(CONFIGS / f"{coco}.py", [])
    assert cfg.model == other.model
    assert cfg.optimizer == other.optimizer
    assert cfg.data.train.source == cfg.data.test.source == "datasets/voc0712"
    assert (cfg.data.train.split, cfg.data.test.split) == ("trainval", "test")


UPDETR = {
    "num_patches": 10,
    "add_to": "position",
    "shuffle": False,
    "mask": "queries",
    "mask_probability": 0.1,
    "groups_apart": True,
    "standardize": False,
    "reconstruction_weight": 1,
    "matching": "all",
}


def test_updetr() -> None:
    cfg = load_config(CONFIGS / "updetr_in1k.py", [])
    for key, expected in UPDETR.items():
        assert value_at(cfg.model, key) == expected, key
    for key, expected in DETR_MODEL.items():
        assert value_at(cfg.model.detector, key) == expected, key
    assert cfg.model.detector.transformer.pre_norm
    assert "swav" in cfg.model.detector.backbone.weights
    assert cfg.dataloader.train.dataset._target_ is without_annotations  # one class
    # M / N of equation 1 is the constant of the code.
    assert cfg.model.num_patches / cfg.model.detector.num_queries == 0.1
    for part, sides in (
        ("train", [320, 336, 352, 368, 400, 416, 432, 448, 464, 480]),
        ("test", [480]),
    ):
        mapper = cfg.dataloader[part].mapper
        assert mapper.augmentation._target_ is ResizeShortSide  # not mirrored, not cropped
        assert (mapper.augmentation.short_sides, mapper.augmentation.max_size) == (sides, 600)
        boxes = instantiate(mapper.boxes)
        assert (boxes.num_patches, boxes.min_side) == (10, 8)
        assert mapper.patches.size == 128
    patches = cfg.dataloader.train.mapper.patches
    jitter, blur = (instantiate(part) for part in patches.photometric)
    assert (jitter.factors, jitter.hue) == ((0.4, 0.4, 0.4), 0.1)
    assert (jitter.probability, jitter.gray_probability) == (0.8, 0.2)
    assert (blur.sigma, blur.probability) == ((0.1, 2.0), 0.5)


DETREG = {
    "embedding_weight": 1,
    "freeze_backbone": "auto",
    "patch_encoder.backbone.out_stages": [3],
    "patch_encoder.backbone.depth": 50,
    "patch_encoder.backbone.norm": "frozen_bn",
    "patch_encoder.pooling": "mean",
    "patch_encoder.normalize": "none",
    "num_layers": 2,
    "layers": "last",
}
DETREG_DATA = {
    "augmentation.short_sides": [320, 336, 352, 368, 400, 416, 432, 448, 464, 480],
    "augmentation.max_size": 600,
    "augmentation.crop_short_sides": [400, 500, 600],
    "augmentation.crop_size": [384, 600],
    "augmentation.flip_probability": 0.5,
    "boxes.pick.k": 30,
    "patches.size": 128,
}


@pytest.mark.parametrize("name", [n for n in SCHEDULES if re.fullmatch("detreg_(?!finetune).*", n)])
def test_detreg(name: str) -> None:
    cfg = load_config(CONFIGS / f"{name}.py", [])
    found = {key: cfg.model.get(key) for key in cfg.model}
    defaults = inspect.signature(DETReg).parameters | inspect.signature(RegionEncoder).parameters
    for key, expected in DETREG.items():
        value = OmegaConf.select(cfg.model, key)
        value = defaults[key.rpartition(".")[2]].default if value is None else value
        assert value == expected, key
    assert found["distance"]._target_ is MeanAbsolute
    assert found["semantic_target"]._target_ is Objectness
    assert cfg.dataloader.train.dataset._target_ is without_annotations  # one class
    for key, expected in DETREG_DATA.items():
        assert value_at(cfg.dataloader.train.mapper, key) == expected, key
    search = instantiate(cfg.dataloader.train.mapper.boxes.search)
    assert (search.mode, search.resize, search.channel_order) == ("fast", "128x128", "bgr")
    detector = DETR_MODEL if "detr_in1k" in name else {**DEFORMABLE_MODEL, "with_box_refine": False}
    for key, expected in detector.items():
        assert value_at(cfg.model.detector, key) == expected, key
    assert cfg.model.detector.transformer.get("pre_norm", False) == ("detr_in1k" in name)
    assert cfg.model.detector.backbone.weights == cfg.model.patch_encoder.backbone.weights
    assert "swav" in cfg.model.detector.backbone.weights
    jitter, blur = (instantiate(part) for part in cfg.dataloader.train.mapper.patches.photometric)
    assert (jitter.factors, jitter.hue) == ((0.4, 0.4, 0.4), 0.1)
    assert (jitter.probability, jitter.gray_probability) == (0.8, 0.2)
    assert (blur.sigma, blur.probability) == ((0.1, 2.0), 0.5)


@pytest.mark.parametrize("name", [n for n in SCHEDULES if re.match("(detreg|updetr)_finetune", n)])
def test_a_method_is_fine_tuned_with_all_but_the_class_head(name: str) -> None:
    cfg = load_config(CONFIGS / f"{name}.py", [])
    start = load_config(CONFIGS / f"{Path(cfg.train.init_checkpoint).parts[1]}.py", [])
    assert cfg.train.reinit == ["class_head"]
    assert start.train.output_dir == str(Path(cfg.train.init_checkpoint).parents[1])
    own, pretrained = copy.deepcopy(cfg.model), copy.deepcopy(start.model.detector)
    for model in (own, pretrained):
        with open_dict(model):
            model.backbone = {**model.backbone, "weights": None, "allow_random_frozen": True}
            model.num_classes = 7
    assert own == pretrained


def test_imagenet_100_is_a_hundred_classes() -> None:
    folders = load_config(CONFIGS / "detreg_in100.py", []).data.unlabeled.folders
    assert len(set(folders)) == len(folders) == 100
    # Of the list that DETReg's code names.
    digest = hashlib.sha256("\n".join(sorted(folders)).encode()).hexdigest()
    assert digest == "d61d354b64beb3ce2c2c9cf04a874298362dc9fcd589e15ee34c5e4592145746"


# Counted on the authors' classes: with 91 classes 47.9, 48.5 and, with 900 queries, 218 million.
PARAMETERS = {
    "h_deformable_detr_r50_coco_12ep": (47.9, 47_946_073),
    "h_deformable_detr_swin_t_coco_36ep": (48.5, 48_489_107),
    "h_deformable_detr_swin_l_900q_coco_36ep": (218, 218_233_517),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_h_deformable_detr(name: str) -> None:
    published, count = PARAMETERS[name]
    cfg = load_config(
        CONFIGS / f"{name}.py", ["data.num_classes=91", "model.backbone.weights=None"]
    )
    with open_dict(cfg):
        cfg.model.backbone.allow_random_frozen = True
    with torch.device("meta"):
        model = instantiate(cfg.model)
    found = sum(p.numel() for p in model.parameters())
    assert found == count
    assert round(found / 1e6, 0 if published == 218 else 1) == published


def docstring(name: str) -> str | None:
    return ast.get_docstring(ast.parse((CONFIGS / f"{name}.py").read_text()))
