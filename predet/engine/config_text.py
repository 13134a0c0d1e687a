"""A config as text: a file that loads to the same config, overrides, a flat table to compare."""

from __future__ import annotations

import enum
import keyword
import math
import os
import pydoc
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from predet.d2.embedded.overrides import parse_value

_TARGET = "_target_"
_WIDTH = 96
_HEADER = '''"""The config of a run, with its overrides. Loads as it is."""
'''


def render(cfg: DictConfig, *, keep_references: bool = False) -> str:
    """The config as a Python file.

    Callables are written by their import path, so the file needs no import of them.

    Args:
        cfg: what is written.
        keep_references: write "${data.test.source}" instead of what it stands for, so that it
            follows when that is overridden.

    Raises:
        ValueError: an interpolation cannot be resolved, or a value (a lambda, an object) has no
            importable name; the key is named.
    """
    modules: set[str] = set()
    blocks = []
    resolved = resolve(cfg)
    values = OmegaConf.to_container(cfg) if keep_references else resolved
    for name, value in values.items():
        if isinstance(value, (Mapping, list)):
            blocks.append(f"{name} = {_expression(value, name, 0, modules)}\n")
    imports = "".join(f"import {module}\n" for module in sorted(modules))
    return f"{_HEADER}\n{imports}from predet.d2 import LazyCall as L\n\n" + "\n".join(blocks)


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    """`key=value` as the command line takes it, for each key."""
    return [f"{key}={as_text(value)}" for key, value in values.items()]


def as_text(value: Any) -> str:
    """A value as `key=value` on the command line takes it; a path is text."""
    if isinstance(value, (str, Path)):
        value = str(value)
        if (
            re.fullmatch(r"[\w./:@+~-]*[a-zA-Z/][\w./:@+~-]*", value)
            and parse_value(value) == value
        ):
            return value
        quoted = re.sub(r"(\\*)'", r"\1\1\\'", value)
        return "'" + re.sub(r"(\\+)$", r"\1\1", quoted) + "'"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(as_text(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{as_text(item)}" for key, item in value.items()) + "}"
    return str(value)


def save_resolved(cfg: DictConfig, path: str | Path) -> None:
    """Write the config to `path` (by convention `config.resolved.py`), replacing it at once.

    References between its keys stay, so that `key=value` means in it what it meant in the recipe.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(render(cfg, keep_references=True), encoding="utf-8")
    os.replace(temporary, path)


def flatten(cfg: DictConfig) -> dict[str, str]:
    """Every leaf of the resolved config by its dotted key, as text."""
    flat: dict[str, str] = {}

    def visit(value: Any, key: str) -> None:
        if isinstance(value, Mapping) and value:
            for name, item in value.items():
                visit(item, f"{key}.{name}" if key else str(name))
        elif isinstance(value, list) and value:
            for index, item in enumerate(value):
                visit(item, f"{key}.{index}")
        else:
            name = key.rsplit(".", 1)[-1]
            flat[key] = (
                str(value)
                if name == _TARGET and isinstance(value, str)
                else (_import_path(value, key) if name == _TARGET else _leaf(value, key, set()))
            )

    visit(resolve(cfg), "")
    return flat


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Plain dicts and lists with interpolations filled in.

    Raises:
        ValueError: an interpolation points to nothing.
    """
    try:
        return OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"config: {str(error).strip()}") from error


def _expression(value: Any, key: str, indent: int, modules: set[str]) -> str:
    """Python source of a value, broken over lines where it is long."""
    if isinstance(value, Mapping) and _TARGET in value:
        target = value[_TARGET]
        path = target if isinstance(target, str) else _import_path(target, key)
        items = [
            (f"{name}=", item, f"{key}.{name}") for name, item in value.items() if name != _TARGET
        ]
        opening, closing = f"L({path!r})(", ")"
    elif isinstance(value, Mapping):
        items = [(f"{name!r}: ", item, f"{key}.{name}") for name, item in value.items()]
        opening, closing = "{", "}"
        if items and all(_is_identifier(name) for name in value):
            items = [(f"{name}=", item, f"{key}.{name}") for name, item in value.items()]
            opening, closing = "dict(", ")"
    elif isinstance(value, list):
        items = [("", item, f"{key}.{index}") for index, item in enumerate(value)]
        opening, closing = "[", "]"
    else:
        return _leaf(value, key, modules)
    parts = [p + _expression(item, where, indent + 4, modules) for p, item, where in items]
    line = opening + ", ".join(parts) + closing
    if len(line) + indent <= _WIDTH and "\n" not in line:
        return line
    space = " " * (indent + 4)
    return opening + "\n" + "".join(f"{space}{part},\n" for part in parts) + " " * indent + closing


def _leaf(value: Any, key: str, modules: set[str]) -> str:
    if value is None or isinstance(value, (bool, int, str, bytes)):
        return repr(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    if isinstance(value, (Mapping, list)):
        return repr(value)
    if isinstance(value, Path):
        return repr(str(value))
    if isinstance(value, torch.dtype):
        modules.add("torch")
        return str(value)
    if isinstance(value, enum.Enum):
        modules.add(type(value).__module__)
        return f"{type(value).__module__}.{type(value).__qualname__}.{value.name}"
    path = _import_path(value, key)
    modules.add(path.removesuffix("." + value.__qualname__))
    return path


def _import_path(value: Any, key: str) -> str:
    """The dotted path under which a class or function can be imported again."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    packages = module.split(".") if module and name else []
    while packages:  # a package may hide the module, as torch.optim does with its own
        path = ".".join([*packages, name])
        if pydoc.locate(path) is value:
            return path
        packages.pop()
    raise ValueError(
        f"config key '{key}' holds {value!r}, which cannot be written to a file: expected "
        "text, a number, or a class or function that can be imported by name"
    )


def _is_identifier(name: Any) -> bool:
    return isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)
