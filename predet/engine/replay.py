"""The replay bundle: everything needed to run a failed step again.

When a loss is not finite the trainer leaves `output_dir/replay/step_<n>_rank<r>.pth`: the batch,
the weights before the update, the step and the seed, as plain data. To look at it:

    from predet.engine import load_replay, replay
    bundle = load_replay("output/replay/step_00001200_rank0.pth")
    print(bundle["keys"], bundle["losses"])
    replay(bundle, model)      # the losses again; `model` built from config.resolved.py
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from predet.checkpoint import read_checkpoint, save_checkpoint
from predet.d2 import Boxes, Instances
from predet.engine.distributed import Batch, seed_all
from predet.engine.precision import Precision


def save_replay(
    output_dir: str | Path,
    *,
    batches: list[Batch],
    model: nn.Module,
    losses: list[dict[str, float]],
    step: int,
    seed: int,
    rank: int,
    precision: str,
) -> Path:
    """Write the bundle of one step (its batches, one for each accumulation step)."""
    path = Path(output_dir) / "replay" / f"step_{step:08d}_rank{rank}.pth"
    save_checkpoint(
        path,
        {
            "batches": _pack(batches),
            "keys": image_keys(batches),
            "losses": losses,
            "model": model.state_dict(),
            "step": step,
            "seed": seed,
            "rank": rank,
            "precision": precision,
        },
    )
    return path


def load_replay(path: str | Path) -> dict[str, Any]:
    """Read a bundle; its `batches` are what the model was given."""
    bundle = read_checkpoint(path)
    bundle["batches"] = _unpack(bundle["batches"])
    return bundle


def replay(
    bundle: Mapping[str, Any], model: nn.Module, *, device: str = "cpu"
) -> list[dict[str, float]]:
    """Run the forward passes of the failed step again.

    Args:
        bundle: of `load_replay`.
        model: a model of the same config; gets the bundle's weights.

    Returns:
        The losses of each batch of the step.
    """
    model.load_state_dict(bundle["model"])
    model.to(device).train()
    precision = Precision(name=bundle["precision"], device_type=torch.device(device).type)
    seed_all(bundle["seed"], bundle["step"], bundle["rank"])
    losses = []
    for batch in bundle["batches"]:
        with torch.no_grad(), precision.autocast():
            losses.append({name: float(value) for name, value in model(batch).items()})
    return losses


def image_keys(batches: list[Batch]) -> list[str]:
    """What names the images of some batches in messages."""
    return [
        str(item.get("key", item.get("file_name", item.get("image_id", "?"))))
        for batch in batches
        for item in batch
    ]


def _pack(value: Any) -> Any:
    """Plain data from what mappers make; `kind` marks what must be rebuilt."""
    if isinstance(value, Instances):
        fields = {name: _pack(field) for name, field in value.get_fields().items()}
        return {"kind": "Instances", "image_size": list(value.image_size), "fields": fields}
    if isinstance(value, Boxes):
        return {"kind": "Boxes", "tensor": value.tensor}
    if isinstance(value, Mapping):
        return {str(name): _pack(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_pack(item) for item in value]
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (Tensor, str, int, float, bool)):
        return value
    return str(value)


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("kind") == "Boxes":
        return Boxes(value["tensor"])
    if value.get("kind") == "Instances":
        instances = Instances(tuple(value["image_size"]))
        for name, field in value["fields"].items():
            instances.set(name, _unpack(field))
        return instances
    return {name: _unpack(item) for name, item in value.items()}
