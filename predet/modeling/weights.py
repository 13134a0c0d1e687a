"""Weights of a backbone from a file: read without running code, loaded only if all of it fits."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

# What torch.load and safetensors raise over files that are truncated or something else.
_UNREADABLE = (
    SafetensorError,
    pickle.UnpicklingError,
    LookupError,
    RuntimeError,
    ValueError,
    OSError,
    EOFError,
)


def read_state_dict(path: str | Path, *, instead: str = "None") -> dict[str, Tensor]:
    """Tensors of a file by the backbone's own names.

    Wrappers (`state_dict`, `model`) and the prefix `module.` are taken off. Of a checkpoint of a
    model that holds a backbone, a detector or one that was pre-trained on images alone, the
    tensors under `backbone.` are taken; averaged weights where it has them.

    Args:
        path: of a file that torch.save wrote, or of safetensors.
        instead: what else could have been given, for the message.

    Raises:
        ValueError: there is no such file, or it holds anything but tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"backbone weights must be {instead} or a file, found none at {path}")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:  # refuses pickles that hold anything but tensors and plain containers
            state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ValueError(
            f"backbone weights {path} cannot be read: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(state, Mapping):
        raise ValueError(
            f"backbone weights {path}: expected a state dict, got {type(state).__name__}"
        )
    for wrapper in ("state_dict", "model"):
        average = state.get("ema")
        if isinstance(state.get(wrapper), Mapping):
            state = average if isinstance(average, Mapping) and average else state[wrapper]
    tensors = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    for place in ("backbone.", "detector.backbone."):
        inside = {n.removeprefix(place): t for n, t in tensors.items() if n.startswith(place)}
        if inside:
            return inside
    return tensors


def load_whole(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    what: str,
    optional: Collection[str] = (),
) -> None:
    """Load a state dict of which nothing is missing, left over or of another shape.

    Args:
        module: receives the tensors.
        state: by the module's own names.
        what: source and receiver, for the message.
        optional: names that may be missing on either side.

    Raises:
        ValueError: something does not fit; the message counts it and names an example.
    """
    own = module.state_dict()
    kinds = {
        "missing": own.keys() - state.keys() - set(optional),
        "unexpected": state.keys() - own.keys() - set(optional),
        "of another shape": {
            name for name in own.keys() & state.keys() if own[name].shape != state[name].shape
        },
    }
    problems = [
        f"{len(names)} tensors {kind}, such as {min(names)}"
        for kind, names in kinds.items()
        if names
    ]
    if problems:
        raise ValueError(f"backbone weights {what}: " + "; ".join(problems))
    module.load_state_dict({name: state[name] for name in own if name in state}, strict=False)


def depths_by_prefix(backbone: nn.Module, prefixes: Sequence[str]) -> dict[str, int]:
    """Depth of each parameter: 1 + the index of the prefix that its name begins with, else 0."""
    depths = {}
    for name, _ in backbone.named_parameters():
        found = (depth for depth, prefix in enumerate(prefixes, 1) if name.startswith(prefix))
        depths[name] = next(found, 0)
    return depths


def refuse_random_frozen(who: str, *, frozen_norm: bool, freeze_at: int, remedy: str) -> None:
    """Stop where frozen parts would keep random values; called for random weights only.

    Args:
        who: the backbone's name, for the message.
        frozen_norm: whether batch normalisation has fixed statistics.
        freeze_at: how many of the first stages are not trained.
        remedy: what to set for a norm that works on random weights.

    Raises:
        ValueError: something would be frozen.
    """
    if frozen_norm:
        problem = "frozen batch normalisation over random weights normalises nothing"
    elif freeze_at > 0:
        problem = f"freeze_at={freeze_at} would freeze stages at their random weights"
        remedy = "freeze_at=0"
    else:
        return
    raise ValueError(
        f"{who}: {problem}. Give weights, or {remedy}; allow_random_frozen=True is for controls "
        "and for detectors whose checkpoint is loaded afterwards."
    )
