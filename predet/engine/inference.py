"""A trained detector, from its config and a checkpoint, ready to be run."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from predet.checkpoint import class_names_of, load_detector, weights_of
from predet.d2 import instantiate
from predet.data.augmentation import ResizeShortSide
from predet.data.mapper import DetectionMapper
from predet.engine.distributed import seed_all

logger = logging.getLogger(__name__)


def load_trained(
    cfg: DictConfig, state: Mapping[str, Any], device: torch.device, *, source: str = ""
) -> nn.Module:
    """The detector of `cfg.model` with the weights of a checkpoint, in evaluation mode.

    Of a pre-training architecture only its `detector` is returned. Averaged weights are preferred
    where the checkpoint has them. Weights that the config names for the backbone are not read (or
    downloaded), for the checkpoint holds the backbone too.

    Args:
        cfg: the config that the checkpoint was trained with; not changed.
        state: what `read_checkpoint` returned.
        device: where the detector goes.
        source: what messages call the checkpoint: its file.

    Raises:
        ValueError: the classes are not known, or a tensor does not fit.
    """
    model = _untrained(cfg, trained_classes(cfg, state))
    load_detector(model, state, source=source)
    return getattr(model, "detector", model).to(device).eval()


def load_method(
    cfg: DictConfig, state: Mapping[str, Any], device: torch.device, *, source: str = ""
) -> tuple[nn.Module, nn.Module]:
    """The whole pre-training architecture, its own parts beside the detector among it.

    Arguments as of `load_trained`.

    Returns:
        The model with the weights of the checkpoint; and one of the initial weights of the config's
        seed, but for its backbone, which is that of the checkpoint. Both in evaluation mode.

    Raises:
        ValueError: the config's model is no such architecture, the classes are not known, or the
            names or shapes of tensors differ.
    """
    names = class_names_of(state) or trained_classes(cfg, state)
    models = []
    for _ in range(2):
        seed_all(OmegaConf.select(cfg, "train.seed", default=0))
        models.append(_untrained(cfg, names).to(device).eval())
    weights, _ = weights_of(state)
    where = f"{source}: " if source else ""
    name = type(models[0]).__name__
    if not hasattr(models[0], "detector"):
        raise ValueError(f"{where}the config's model, {name}, is a detector: it pre-trains none")
    try:
        models[0].load_state_dict(weights)
    except RuntimeError as error:
        told = str(error)
        told = told if len(told) < 1500 else f"{told[:1500]} ..."
        raise ValueError(
            f"{where}not a checkpoint of the config's model, {name} of a "
            f"{type(models[0].detector).__name__}: {told}"
        ) from error
    trained, untrained = models
    untrained.detector.backbone.load_state_dict(trained.detector.backbone.state_dict())
    return trained, untrained


def _untrained(cfg: DictConfig, names: Sequence[str]) -> nn.Module:
    cfg = without_backbone_weights(cfg)
    with open_dict(cfg):
        cfg.data = OmegaConf.merge(
            cfg.get("data") or {}, {"num_classes": len(names), "class_names": list(names)}
        )
    return instantiate(cfg.model)


def without_backbone_weights(cfg: DictConfig) -> DictConfig:
    """A copy of `cfg` that builds the same model without reading weights for its backbones."""
    cfg = copy.deepcopy(cfg)
    with open_dict(cfg):
        if OmegaConf.select(cfg, "model.patch_encoder.backbone") is not None:
            cfg.model.patch_encoder.allow_random = True
        if OmegaConf.select(cfg, "model.freeze_backbone") == "auto":
            weights = OmegaConf.select(cfg, "model.detector.backbone.weights")
            cfg.model.freeze_backbone = weights is not None
        # The encoder first: its weights may be told to be those of the detector.
        for place in ("model.patch_encoder.backbone", "model.backbone", "model.detector.backbone"):
            backbone = OmegaConf.select(cfg, place)
            if backbone is not None and backbone.get("weights") is not None:
                backbone.weights = None
                backbone.allow_random_frozen = True
    return cfg


def inference_mapper(
    cfg: DictConfig, *, short_side: int | None = None, max_side: int | None = None
) -> DetectionMapper:
    """What makes images as large as a detector is to see them.

    Args:
        cfg: has the size, in `dataloader.test.mapper.augmentation`.
        short_side: pixels, instead of the config's.
        max_side: most pixels of the other side, with `short_side`.

    Raises:
        ValueError: neither tells the size; configs of pre-training may have none.
    """
    if short_side is not None:
        augmentation = ResizeShortSide(short_sides=[short_side], max_size=max_side)
    else:
        own = OmegaConf.select(cfg, "dataloader.test.mapper.augmentation")
        if own is None:
            raise ValueError(
                "the config has no dataloader.test.mapper.augmentation: give --short-side (and "
                "--max-side), the size in pixels at which the detector is to see the images"
            )
        augmentation = instantiate(own)
    return DetectionMapper(augmentation=augmentation, training=False)


def trained_classes(cfg: DictConfig, state: Mapping[str, Any]) -> tuple[str, ...]:
    """Ordered names of the classes that a checkpoint was trained on.

    Raises:
        ValueError: neither checkpoint nor config tell them, or they differ.
    """
    known = class_names_of(state)
    given = OmegaConf.select(cfg, "data.class_names")
    if known is None and given is None:
        raise ValueError(
            "the checkpoint does not tell the names of its classes: give them in their order, "
            "data.class_names=[...]"
        )
    if known is not None and given is not None and list(known) != list(given):
        raise ValueError(
            f"the checkpoint was trained on the classes {list(known)}, data.class_names is "
            f"{list(given)}"
        )
    return tuple(given if known is None else known)


def sha256_of(path: str | Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
