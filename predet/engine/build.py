"""From a config to the parts of a run, in the order in which they depend on each other."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from predet.checkpoint import head_classes_of, load_detector, read_checkpoint, reinit_for_classes
from predet.checkpoint.transfer import ALL_BUT
from predet.d2 import comm, instantiate
from predet.engine.distributed import seed_all
from predet.engine.settings import AUTO_REINIT, TrainSettings
from predet.evaluation import evaluate

logger = logging.getLogger(__name__)


def choose_device(wanted: str, num_gpus: int) -> torch.device:
    """The device of this process: `wanted`, or the CPU where there is no GPU to use.

    Raises:
        ValueError: "cpu" is wanted by processes that were started to share GPUs.
    """
    several = dist.is_available() and dist.is_initialized()
    if wanted.startswith("cuda") and num_gpus > 0 and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if several and dist.get_backend() == "nccl":
        raise ValueError(
            f"train.device={wanted}, but these processes were started on GPUs: use --num-gpus 0, "
            "or hide the GPUs (CUDA_VISIBLE_DEVICES=) to train in several processes on the CPU"
        )
    if wanted.startswith("cuda"):
        why = "--num-gpus 0" if torch.cuda.is_available() else "this machine has no GPU"
        logger.info("running on the CPU: %s", why)
    return torch.device("cpu" if wanted.startswith("cuda") else wanted)


def fill_classes(cfg: DictConfig, dataset: Any) -> None:
    """Put the classes of the data into `data.num_classes` and `data.class_names`.

    A config whose `data` has no key `num_classes` does without classes if the data has none.

    Raises:
        ValueError: the config names other ones, or neither data nor config have any.
    """
    names = list(dataset.class_names)
    with open_dict(cfg):
        if "data" not in cfg:
            cfg.data = {}
        given, given_names = cfg.data.get("num_classes"), cfg.data.get("class_names")
        if not names:
            if given is None and "num_classes" in cfg.data:
                raise ValueError(
                    f"data set '{dataset.name}' has no classes, so data.num_classes must be given"
                )
            return
        if given is not None and given != len(names):
            raise ValueError(
                f"data.num_classes is {given}, but data set '{dataset.name}' has {len(names)} "
                f"classes: {', '.join(names)}; leave data.num_classes out"
            )
        if given_names is not None and list(given_names) != names:
            raise ValueError(
                f"data.class_names is {list(given_names)}, but data set '{dataset.name}' has "
                f"{names}; leave data.class_names out"
            )
        cfg.data.num_classes, cfg.data.class_names = len(names), names
    logger.info("%d classes from '%s': %s", len(names), dataset.name, ", ".join(names))


def build_model(cfg: DictConfig, settings: TrainSettings, device: torch.device) -> nn.Module:
    """Make the model of the config; its initial weights depend on the seed only."""
    seed_all(settings.seed)
    model = instantiate(cfg.model).to(device)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    count = sum(p.numel() for p in model.parameters())
    logger.info("%s: %d parameters, %d of them trained", type(model).__name__, count, trained)
    return model


def backbone_config(cfg: DictConfig) -> DictConfig:
    """The part of a config that builds the backbone, of its model or its model's detector.

    Raises:
        ValueError: there is none.
    """
    for place in ("model.backbone", "model.detector.backbone"):
        if (found := OmegaConf.select(cfg, place)) is not None:
            return found
    raise ValueError("the config's model has no backbone, and no detector with one")


def backbone_is_replaced(cfg: DictConfig, settings: TrainSettings, *, begun: bool) -> bool:
    """Whether a checkpoint brings the whole backbone: then its own weights need not be there.

    Args:
        cfg: of the training.
        settings: of the same.
        begun: it goes on from a checkpoint of its own, else begins with `train.init_checkpoint`.
    """
    pretraining = "detector" in cfg.model
    if begun:
        return not pretraining or "freeze_backbone" in cfg.model  # decided by the weights' presence
    if pretraining or not settings.init_checkpoint:
        return False
    fresh = () if settings.reinit == AUTO_REINIT else settings.reinit
    return not any(name.startswith(("backbone", ALL_BUT)) for name in fresh)


def build_optimizer(cfg: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Make the optimiser; `optimizer.params.model` is this model."""
    cfg = copy.deepcopy(cfg)
    if OmegaConf.select(cfg, "optimizer.params._target_") is None:
        raise ValueError(
            "optimizer.params: expected a call such as L(parameter_groups)(lr_factors={...})"
        )
    with open_dict(cfg):
        cfg.optimizer.params.model = model
    return instantiate(cfg.optimizer)


def load_initial_weights(
    model: nn.Module, settings: TrainSettings, class_names: Sequence[str]
) -> None:
    """Load `train.init_checkpoint` by the rules of `load_detector` and `train.reinit`."""
    if not settings.init_checkpoint:
        return
    state = read_checkpoint(settings.init_checkpoint)
    reinit = settings.reinit
    if reinit == AUTO_REINIT:
        reinit = reinit_for_classes(state, class_names, model)
    elif head_classes_of(state) not in (None, list(class_names)):
        logger.warning(
            "the class head of the checkpoint knows %s, the data has %s; train.reinit is %s",
            head_classes_of(state),
            list(class_names),
            list(reinit),
        )
    load_detector(model, state, reinit=reinit, source=settings.init_checkpoint)


def load_for_evaluation(
    model: nn.Module, settings: TrainSettings, class_names: Sequence[str]
) -> None:
    """Load `train.init_checkpoint`, strictly, to evaluate it.

    Raises:
        ValueError: none is given, a tensor does not fit, or its ordered class names differ.
    """
    if not settings.init_checkpoint:
        raise ValueError("--eval-only needs train.init_checkpoint=PATH")
    state = read_checkpoint(settings.init_checkpoint)
    names = head_classes_of(state)
    if names is None:
        logger.warning("%s does not tell its class names", settings.init_checkpoint)
    elif names != list(class_names):
        raise ValueError(
            f"{settings.init_checkpoint} knows the classes {names}, the test data has "
            f"{list(class_names)}: its detections would be counted for other classes"
        )
    load_detector(model, state, source=settings.init_checkpoint)


def build_evaluation(
    cfg: DictConfig, class_names: Sequence[str] | None = None
) -> tuple[Any, Callable[[nn.Module], Mapping[str, float]]] | None:
    """The test data and a function that evaluates a model on it, or None without test data.

    Raises:
        ValueError: the test data has other classes than `class_names`.
    """
    loaders = cfg.dataloader
    if loaders.get("test") is None or loaders.get("evaluator") is None:
        return None
    loader = instantiate(loaders.test)
    dataset = loader.dataset
    if class_names is not None and list(dataset.class_names) != list(class_names):
        raise ValueError(
            f"test data '{dataset.name}' has the classes {list(dataset.class_names)}, "
            f"the training data has {list(class_names)}"
        )
    cfg = copy.deepcopy(cfg)
    with open_dict(cfg):
        cfg.dataloader.evaluator.dataset = dataset
    evaluator = instantiate(cfg.dataloader.evaluator)
    logger.info("test data '%s': %d images", dataset.name, len(dataset))
    return dataset, lambda model: evaluate(model, loader, evaluator)


def describe_machine() -> str:
    """One line for the log: versions and hardware."""
    from predet import __version__
    from predet.d2 import SIDE, SIDE_REASON

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"predet {__version__}, torch {torch.__version__}, Detectron2 interface: {SIDE} "
        f"({SIDE_REASON}), {gpu}, {comm.get_world_size()} process(es), "
        f"{torch.get_num_threads()} threads"
    )
