"""Where a checkpoint comes from, and whether a run may go on from it."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import nn

from predet import __version__
from predet.d2 import SIDE, comm
from predet.engine.config_text import flatten, render

logger = logging.getLogger(__name__)

CHECKPOINT_FORMAT = 1

# Keys that change how a run is carried out or reported, not what comes out of it. How a step is
# divided (accumulation, processes) changes the order of summation only.
_RUN_TIME_KEYS = re.compile(
    r"train\.(output_dir|log_period|eval_period|eval_at|checkpoint_period|accumulation_steps"
    r"|find_unused_parameters)"
    r"|dataloader\.(test|evaluator)(\..*)?"
    r"|(.*\.)?num_workers"
)
# What these change is seen by the evaluation alone: the weights of a run are the same.
_TEST_DATA = re.compile(r"data\.test(\..*)?")


def run_identity(
    cfg: DictConfig, dataset: Any, model: nn.Module | None = None, mapper: Any = None
) -> dict[str, Any]:
    """What every checkpoint of a run holds besides weights: format, config, provenance.

    A model that teaches its class head other classes than those of the data says so by
    `taught_classes(class_names)`; a mapper that reads more than the data set says so by
    `provenance`, a dict of texts.
    """
    taught = getattr(model, "taught_classes", list)
    return {
        "format": CHECKPOINT_FORMAT,
        "config": render(cfg),
        "config_items": flatten(cfg),
        "provenance": {
            "predet": __version__,
            "d2": SIDE,
            "torch": str(torch.__version__),
            "world_size": comm.get_world_size(),
            "device": _device_of(model) or str(cfg.train.get("device", "")),
            "class_names": list(dataset.class_names),
            "head_classes": list(taught(list(dataset.class_names))),
            "dataset": describe_dataset(dataset),
            "mapper": dict(getattr(mapper, "provenance", {})),
        },
    }


def _device_of(model: nn.Module | None) -> str:
    """Its kind: "cpu" or "cuda"."""
    return "" if model is None else next((p.device.type for p in model.parameters()), "")


def describe_dataset(dataset: Any) -> dict[str, Any]:
    """Name, size and a fingerprint of images (by key), boxes and classes of a data set."""
    digest = hashlib.sha256("\n".join(dataset.class_names).encode())
    for name in ("key_bytes", "key_offsets", "offsets", "boxes", "classes", "iscrowd"):
        array = np.ascontiguousarray(getattr(dataset, name))
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return {
        "name": str(dataset.name),
        "images": len(dataset),
        "boxes": len(dataset.boxes),
        "fingerprint": digest.hexdigest(),
        # What the augmentation of an image is drawn from.
        "image_ids": hashlib.sha256(np.asarray(dataset.image_ids, np.int64).tobytes()).hexdigest(),
    }


def check_same_run(state: Mapping[str, Any], identity: Mapping[str, Any], where: str) -> None:
    """Refuse to go on from a checkpoint of another run.

    Raises:
        ValueError: another config (the keys are listed), data set or Detectron2 side, or no
            training checkpoint at all.
    """
    for key in ("format", "step", "optimizer", "config_items", "provenance"):
        if key not in state:
            raise ValueError(f"{where} is no checkpoint to resume from: it has no '{key}'")
    if state["format"] != CHECKPOINT_FORMAT:
        raise ValueError(
            f"{where} has format {state['format']}, expected {CHECKPOINT_FORMAT}: "
            "it was written by another version of predet"
        )
    then, now = state["provenance"], identity["provenance"]
    problems = changed_keys(state["config_items"], identity["config_items"])
    if then["d2"] != now["d2"]:
        problems.append(f"Detectron2 side: '{then['d2']}' then, '{now['d2']}' now (PREDET_D2)")
    if then["dataset"]["fingerprint"] != now["dataset"]["fingerprint"]:
        problems.append(f"training data: {_data(then)} then, {_data(now)} now")
    elif then["dataset"].get("image_ids") not in (None, now["dataset"]["image_ids"]):
        problems.append("training data: the same images and boxes, with other image ids")
    boxes = then.get("mapper", {}), now.get("mapper", {})
    if boxes[0] != boxes[1]:
        problems.append(f"boxes: {boxes[0]} then, {boxes[1]} now")
    if problems:
        raise ValueError(
            f"cannot resume from {where}: it belongs to another run\n  "
            + "\n  ".join(problems)
            + "\nGo back to the settings of that run, or choose another train.output_dir "
            "(train.init_checkpoint starts a new run from these weights)."
        )
    division = "train.accumulation_steps"
    if (then["world_size"], state["config_items"].get(division)) != (
        now["world_size"],
        identity["config_items"].get(division),
    ):
        logger.warning(
            "the steps are divided otherwise than before (%s process(es) then, %s now): images "
            "and augmentations stay the same, sums are taken in another order, and random numbers "
            "inside the model (dropout) are others",
            then["world_size"],
            now["world_size"],
        )
    for what in ("torch", "predet", "device"):
        if then[what] != now[what]:
            logger.warning(
                "%s was '%s' when the checkpoint was written and is '%s' now: the run goes on, "
                "but not to the bit",
                what,
                then[what],
                now[what],
            )


def changed_keys(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """One line for each config key that differs and matters to the weights."""
    lines = []
    for key in sorted({*then, *now}):
        if not changes_the_result(key) or _TEST_DATA.fullmatch(key):
            continue
        if then.get(key) == now.get(key):
            continue
        lines.append(f"{key}: {then.get(key, 'not set')} then, {now.get(key, 'not set')} now")
    return lines


def changes_the_result(key: str) -> bool:
    """Whether a config key decides what comes out of a run, not only how it is carried out."""
    return _RUN_TIME_KEYS.fullmatch(key) is None


def _data(provenance: Mapping[str, Any]) -> str:
    data = provenance["dataset"]
    return (
        f"{data['name']} with {data['images']} images, {data['boxes']} boxes, "
        f"classes {', '.join(provenance['class_names'])} (fingerprint {data['fingerprint'][:12]})"
    )
