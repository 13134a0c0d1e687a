"""Parameter groups by name."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

logger = logging.getLogger(__name__)


def parameter_groups(
    *,
    model: nn.Module,
    lr_factors: Mapping[str, float] | None = None,
    no_weight_decay: Sequence[str] = (),
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
        no_weight_decay: patterns of parameters without weight decay.

    Raises:
        ValueError: a pattern matches no parameter, or a factor is not positive.
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
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for parameter, its_names in names.items():
        factor = 1.0
        for pattern, value in lr_factors.items():
            if _matches(pattern, its_names):
                factor = float(value)
        decays = not any(_matches(pattern, its_names) for pattern in no_weight_decay)
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
