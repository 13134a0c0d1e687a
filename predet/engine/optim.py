"""Parameter groups by name, by kind and by depth."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

logger = logging.getLogger(__name__)


def parameter_groups(
    *,
    model: nn.Module,
    lr_factors: Mapping[str, float] | None = None,
    no_weight_decay: Sequence[str] = (),
    decay_norms: bool = True,
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Group a model's trained parameters by learning rate and weight decay.

    A pattern names consecutive parts of a dotted name: `backbone` means `backbone.stem.weight` and
    `detector.backbone.stem.weight`, not `backbone2.weight`; a part may hold `*` and `?`. Where
    several patterns match a parameter, the last one counts. Everything has weight decay unless it
    is named (as in the papers). Frozen parameters are left out.

    The factor is kept in the group as `lr_factor`; the trainer sets
    `lr = base * lr_factor * schedule` at each step.

    Args:
        lr_factors: learning rate relative to the optimiser's, by pattern.
        no_weight_decay: patterns of parameters without weight decay, for example
            ["relative_position_bias_table"].
        decay_norms: whether weights and biases of normalisation layers have weight decay, as in
            the papers; False leaves them out whatever their names.
        layer_decay: the learning rate of the backbone's last layer is multiplied by this for each
            layer further down, on top of `lr_factors`; the backbone tells its `layer_depths()`.

    Raises:
        ValueError: a pattern matches no parameter, a factor is not positive, or no part of the
            model has layers to tell for `layer_decay`.
    """
    lr_factors = dict(lr_factors or {})
    for pattern, factor in lr_factors.items():
        if not factor > 0:
            raise ValueError(
                f"lr_factors['{pattern}']: expected a factor > 0, got {factor}; to train nothing "
                "there, freeze the module"
            )
    names: dict[nn.Parameter, list[str]] = {}  # shared parameters have several names
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(parameter, []).append(name)
    _check_patterns([*lr_factors, *no_weight_decay], names)
    layer_factors = {} if layer_decay is None else _layer_factors(model, layer_decay)
    norms = set() if decay_norms else _norm_parameters(model)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for parameter, its_names in names.items():
        factor = 1.0
        for pattern, value in lr_factors.items():
            if _matches(pattern, its_names):
                factor = float(value)
        factor *= layer_factors.get(parameter, 1.0)
        decays = parameter not in norms and not any(
            _matches(pattern, its_names) for pattern in no_weight_decay
        )
        group = groups.setdefault((factor, decays), {"params": [], "lr_factor": factor})
        group["params"].append(parameter)
        if not decays:
            group["weight_decay"] = 0.0
    for (factor, decays), group in groups.items():
        count = sum(parameter.numel() for parameter in group["params"])
        logger.info(
            "parameter group: lr x %g%s, %d tensors, %d values",
            factor,
            "" if decays else ", no weight decay",
            len(group["params"]),
            count,
        )
    return list(groups.values())


def _norm_parameters(model: nn.Module) -> set[nn.Parameter]:
    kinds = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)
    norms = (module for module in model.modules() if isinstance(module, kinds))
    return {parameter for norm in norms for parameter in norm.parameters(recurse=False)}


def _layer_factors(model: nn.Module, layer_decay: float) -> dict[nn.Parameter, float]:
    """What `layer_decay` makes of the learning rate of each parameter of a backbone."""
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must be above 0 and at most 1, got {layer_decay}")
    factors: dict[nn.Parameter, float] = {}
    for module in model.modules():
        if hasattr(module, "layer_depths"):
            depths = module.layer_depths()
            last = max(depths.values())
            for name, parameter in module.named_parameters():
                factors[parameter] = layer_decay ** (last - depths[name])
    if not factors:
        raise ValueError(
            f"layer_decay={layer_decay}: no part of {type(model).__name__} tells its layer_depths()"
        )
    return factors


def _check_patterns(patterns: Sequence[str], names: Mapping[nn.Parameter, list[str]]) -> None:
    every = [name for its_names in names.values() for name in its_names]
    for pattern in patterns:
        if not _matches(pattern, every):
            parts = sorted({part for name in every for part in name.split(".")})
            near = difflib.get_close_matches(pattern, parts, n=3)
            raise ValueError(
                f"pattern '{pattern}' matches no trained parameter of {len(names)}"
                + (f"; nearest parts of names: {', '.join(near)}" if near else "")
            )


def _matches(pattern: str, names: Sequence[str]) -> bool:
    wanted = pattern.split(".")
    for name in names:
        parts = name.split(".")
        for start in range(len(parts) - len(wanted) + 1):
            window = parts[start : start + len(wanted)]
            if all(fnmatchcase(part, want) for part, want in zip(window, wanted, strict=True)):
                return True
    return False
