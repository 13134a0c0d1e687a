"""One optimiser step of small real detectors, however it is divided; importable by processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from predet.d2 import Boxes, Instances, comm, instantiate
from predet.engine import TrainSettings, WarmupSchedule, load_config
from predet.engine.step import OptimizerStep
from predet.engine.stopping import StopRequest

ROOT = Path(__file__).resolve().parents[2]
COUNTS = (3, 0, 7, 1, 0, 0, 2, 5)  # boxes of the images of the step
# What makes a tiny detector smaller still, wherever its config has a key of this name.
SMALLER = {"hidden_dim": 32, "ffn_dim": 32, "num_encoder_layers": 1, "num_queries": 6}


def make_detector(name: str) -> torch.nn.Module:
    """The detector of configs/tiny/NAME.py, smaller, in double precision."""
    cfg = load_config(ROOT / f"configs/tiny/{name}.py", ["data.num_classes=3"])
    OmegaConf.set_struct(cfg, False)
    _shrink(cfg.model)
    torch.manual_seed(0)
    model = instantiate(cfg.model).double()
    with torch.no_grad():  # fresh weights put samples on the borders of pixels: gradients jump
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    return model


def _shrink(node) -> None:
    for key in list(node):
        child = node._get_node(key)
        if OmegaConf.is_dict(child):
            _shrink(child)
        elif key in SMALLER:
            node[key] = SMALLER[key]


def images(counts=COUNTS) -> list[dict]:
    """Images of one size, so that nothing is padded; one has more boxes than queries."""
    rng = np.random.default_rng(0)
    return [_image(rng, count) for count in counts]


def _image(rng: np.random.Generator, count: int) -> dict:
    corner = rng.uniform(0, 40, (count, 2))
    instances = Instances((64, 64))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 24, (count, 2))], 1)
    instances.gt_boxes = Boxes(torch.from_numpy(boxes.astype(np.float32)))
    instances.gt_classes = torch.from_numpy(rng.integers(0, 3, count))
    pixels = rng.integers(0, 256, (3, 64, 64), dtype=np.uint8)
    return {"image": torch.from_numpy(pixels), "instances": instances, "key": "drawn"}


def gradients(name: str, micro_steps: int, counts=COUNTS) -> dict[str, torch.Tensor]:
    """Gradient of one step, and "loss", of this process's share dealt out as the loader does."""
    model = make_detector(name)
    settings = TrainSettings(
        max_iter=10, device="cpu", accumulation_steps=micro_steps, clip_grad_norm=None
    )
    steps = OptimizerStep(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        schedule=WarmupSchedule(max_iter=10),
        settings=settings,
        stop=StopRequest(),
    )
    steps.wrap()
    rank, world_size = comm.get_rank(), comm.get_world_size()
    items = images(counts)
    share = len(items) // (micro_steps * world_size)
    starts = [(part * world_size + rank) * share for part in range(micro_steps)]
    result = steps.run(0, [items[start : start + share] for start in starts])
    found = {key: p.grad.clone() for key, p in model.named_parameters() if p.requires_grad}
    return found | {"loss": result.losses["loss"]}


def save_gradients(names: tuple[str, ...], micro_steps: int, path: str) -> None:
    """For `run_ranks`: what rank 0 has once the processes have exchanged gradients."""
    found = {name: gradients(name, micro_steps) for name in names}
    losses = {name: comm.all_gather(float(value["loss"])) for name, value in found.items()}
    for name, values in losses.items():
        found[name]["loss"] = torch.tensor(sum(values) / len(values))
    if comm.is_main_process():
        torch.save(found, path)
