"""A config as text: Python-like code for people, YAML for files.

Contract: `LazyConfig.to_py` and `LazyConfig.save` of Detectron2.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf, SCMode

from predet.d2.embedded.instantiate import can_be_located, target_name

logger = logging.getLogger(__name__)

WIDTH = 88


def to_python(cfg: DictConfig, prefix: str = "cfg.") -> str:
    """One assignment a line, references resolved, keys sorted; calls are written as calls.

    It is made to be read, and compared, by people; not every config can be run this way.
    """
    content: Any = OmegaConf.to_container(cfg, resolve=True)
    if "_target_" in content:
        return f"{prefix.removesuffix('.')} = {_code(content, 0)}\n"
    return "".join(f"{line}\n" for line in _assignments(content, prefix))


def _assignments(group: Mapping, prefix: str) -> list[str]:
    lines = []
    for key in sorted(group, key=str):
        value = group[key]
        if isinstance(value, Mapping) and "_target_" not in value and value:
            lines += _assignments(value, f"{prefix}{key}.")
        else:
            lines.append(f"{prefix}{key} = {_code(value, 0, used=len(f'{prefix}{key} = '))}")
    return lines


def _code(value: Any, indent: int, used: int = 0) -> str:
    """`value` on one line where it fits, else one item a line, `indent` levels deep.

    `used` counts the characters before it on its line, the indent left out.
    """
    flat = _flat(value)
    opening, items, closing = _items(value)
    if items is None or 4 * indent + used + len(flat) < WIDTH:
        return flat
    pad = " " * 4 * (indent + 1)
    lines = [f"{pad}{name}{_code(item, indent + 1, len(name))},\n" for name, item in items]
    return f"{opening}\n{''.join(lines)}{' ' * 4 * indent}{closing[-1]}"


def _flat(value: Any) -> str:
    opening, items, closing = _items(value)
    return opening + ", ".join(name + _flat(item) for name, item in items or ()) + closing


def _items(value: Any) -> tuple[str, list[tuple[str, Any]] | None, str]:
    """What opens, fills and closes the code of a value; no items: `opening` is all of it."""
    if isinstance(value, Mapping) and "_target_" in value:
        target = value["_target_"]
        name = target if isinstance(target, str) else _flat(target)
        keys = sorted((key for key in value if key != "_target_"), key=str)
        return f"{name}(", [(f"{key}=", value[key]) for key in keys], ")"
    if isinstance(value, Mapping):
        keys = sorted(value, key=str)
        return "{", [(f"{_flat(key)}: ", value[key]) for key in keys], "}"
    if isinstance(value, list):
        return "[", [("", item) for item in value], "]"
    if isinstance(value, tuple):
        return "(", [("", item) for item in value], ",)" if len(value) == 1 else ")"
    if isinstance(value, str):
        text = repr(value)
        return (f'"{text[1:-1]}"' if text[0] == "'" and '"' not in text else text), None, ""
    if callable(value) and hasattr(value, "__qualname__"):
        return target_name(value), None, ""
    return repr(value), None, ""


def save_yaml(cfg: DictConfig | ListConfig, filename: str) -> None:
    """Write a config as YAML that `LazyConfig.load` reads again.

    References stay references; targets are written as dotted names, dataclasses as calls of their
    class. What has no name to be found by (a lambda, a tensor) is written for people to read only,
    with a warning that says which key it is.
    """
    content: Any = OmegaConf.to_container(
        cfg, resolve=False, structured_config_mode=SCMode.INSTANTIATE
    )
    unsaved: list[str] = []
    content = _storable(content, "", unsaved)
    with open(filename, "w", encoding="utf-8") as file:
        yaml.dump(
            content, file, Dumper=_Dumper, default_flow_style=None, allow_unicode=True, width=9999
        )
    if unsaved:
        logger.warning(
            "%s can be read by people but not loaded: no name leads to %s",
            filename,
            ", ".join(unsaved),
        )


def _storable(value: Any, key: str, unsaved: list[str]) -> Any:
    if isinstance(value, dict):
        return {
            name: _storable(_named(item) if name == "_target_" else item, f"{key}.{name}", unsaved)
            for name, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        items = [_storable(item, f"{key}[{i}]", unsaved) for i, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return _storable({"_target_": type(value), **fields}, key, unsaved)
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, _NAMED) or not can_be_located(value):
        unsaved.append(f"{key.removeprefix('.')} ({value!r})")
        return _Unsaved(value)
    return value


def _named(target: Any) -> Any:
    return target_name(target) if can_be_located(target) else target


_NAMED = (type, FunctionType, BuiltinFunctionType)


class _Unsaved:
    """Marks a value of which only the text is written."""

    def __init__(self, value: Any):
        self.text = repr(value)


class _Dumper(yaml.SafeDumper):
    """Plain YAML, tuples, and classes and functions by name; lists and such without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    tuple, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:python/tuple", value)
)
_Dumper.add_representer(
    _Unsaved, lambda dumper, value: dumper.represent_scalar("!not-saved", value.text)
)
for _kind in _NAMED:
    _Dumper.add_multi_representer(
        _kind,
        lambda dumper, value: dumper.represent_scalar(
            f"tag:yaml.org,2002:python/name:{target_name(value)}", ""
        ),
    )
