"""timm, where the extra of that name is installed."""

from __future__ import annotations

import difflib
from importlib import import_module
from types import ModuleType

PREFIX = "timm:"


def require_timm(who: str) -> ModuleType:
    """The package timm.

    Raises:
        ValueError: it is not installed; the message says how to.
    """
    try:
        return import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":  # timm is there, but something that it needs is not
            raise
        raise ValueError(f"{who} needs timm: pip install 'predet[timm]'") from error


def known_name(timm: ModuleType, name: str) -> str:
    """`name`, if timm has a model of that name (with or without a tag for its weights).

    Raises:
        ValueError: it has none; the nearest names are given.
    """
    architecture = name.split(".")[0]
    if timm.is_model(architecture):
        return name
    near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
    raise ValueError(
        f"timm {timm.__version__} has no model '{name}'"
        + (f"; nearest: {', '.join(near)}" if near else "")
    )
