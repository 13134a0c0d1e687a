"""Configs: Detectron2's LazyConfig files with one more promise, that a typo is an error.

A config is a Python file (see `configs/`). Command-line overrides are `key=value`.
A key may be overridden if the config sets it, or if the callable that the config names there has
a parameter of that name (`model.dropout=0.1` although the config leaves the default).
"""

from __future__ import annotations

import difflib
import inspect
import pydoc
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

import predet.configs
from predet.d2 import LazyConfig
from predet.d2.embedded.overrides import parse_value
from predet.engine.settings import TrainSettings

SECTIONS = ("model", "dataloader", "optimizer", "lr_multiplier", "train", "data")
_TARGET = "_target_"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> DictConfig:
    """Load a config file, apply `key=value` overrides and refuse every unknown key.

    A path that starts with `configs/` and does not exist is looked up among the configs that
    are installed with predet. Interpolations such as `"${data.num_classes}"` stay unresolved.

    Raises:
        ValueError: no such file; an override that is not `key=value`; an unknown key, in the
            file or in an override; the nearest known keys are named.
    """
    cfg = LazyConfig.load(str(find_config(path)))
    _check_calls(cfg)
    return override_config(cfg, overrides)


def override_config(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Apply `key=value` overrides to a loaded config, in place, as `load_config` does.

    Raises:
        ValueError: an override that is not `key=value`, or an unknown key.
    """
    OmegaConf.set_struct(cfg, False)
    for override in overrides:
        key, value = _parse(override)
        _set(cfg, key, value)
    OmegaConf.set_struct(cfg, True)
    return cfg


def require_sections(cfg: DictConfig) -> None:
    """Raise ValueError if a section that training needs is missing (`data` may be)."""
    missing = [name for name in SECTIONS if name not in cfg and name != "data"]
    if missing:
        raise ValueError(
            f"the config has no {', '.join(missing)}; a training config has the sections "
            + ", ".join(SECTIONS)
        )
    TrainSettings.from_config(cfg.train)


def find_config(path: str | Path) -> Path:
    """The file that `path` means: as given, else inside the installed `predet.configs`."""
    if not str(path):
        raise ValueError("no config is given: --config-file configs/NAME.py")
    path = Path(path)
    if path.is_file():
        return path
    tried = [path]
    if path.parts and path.parts[0] == "configs":
        for folder in predet.configs.__path__:
            installed = Path(folder, *path.parts[1:])
            if installed.is_file():
                return installed
            tried.append(installed)
    known = [
        "configs/" + file.relative_to(folder).as_posix()
        for folder in predet.configs.__path__
        for file in sorted(Path(folder).rglob("*.py"))
        if file.name != "__init__.py" and "common" not in file.parts
    ]
    near = difflib.get_close_matches(path.as_posix(), known, n=3, cutoff=0.5) or known[:10]
    raise ValueError(
        f"config file {path} does not exist (tried {', '.join(map(str, tried))})"
        + (f"; shipped configs: {', '.join(near)}" if near else "")
    )


def list_keys(cfg: DictConfig) -> dict[str, str]:
    """Every key that can be overridden, with its value as text.

    Parameters that the config leaves out are listed too, as `(default VALUE)` or `(required)`.
    """
    keys: dict[str, str] = {}
    for path, node in _sections(cfg):
        for name in node:
            if name == _TARGET:
                continue
            value = node._get_node(name)
            keys[_join(path, name)] = (
                _call_name(value) if isinstance(value, DictConfig) else _text(value)
            )
        for name, default in _unset(path, node).items():
            keys[_join(path, name)] = default
    return dict(sorted(keys.items()))


def _parse(override: str) -> tuple[str, Any]:
    """Split `key=value`; the value is read alike on both sides of `predet.d2`."""
    key, equals, text = override.partition("=")
    if override.startswith("-"):
        raise ValueError(f"option {override} comes after an override; options come first")
    key = re.sub(r"\[(\d+)\]", r".\1", key.strip())  # a[0] and a.0 are the same key
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        raise ValueError(
            f"override '{override}' is not of the form key=value (for example train.max_iter=1000)"
        )
    try:
        return key, parse_value(text)
    except ValueError as error:
        raise ValueError(f"override '{override}': {error}") from None


def _set(cfg: DictConfig, key: str, value: Any) -> None:
    """Set one key that must be known.

    A dict given for a call or a top-level section is merged key by key, each one checked; for a
    plain dict among a call's arguments it takes the place of the old one.
    """
    parent, name = _parent_of(cfg, key)
    known = _is_known(parent, name, key)
    if not known:
        raise ValueError(_unknown(cfg, key))
    old = parent._get_node(name) if not isinstance(name, int) or name < len(parent) else None
    section = key in SECTIONS or (isinstance(old, DictConfig) and _TARGET in old)
    if isinstance(value, Mapping) and section:
        for inner, item in value.items():
            _set(cfg, f"{key}.{inner}", item)
        return
    with open_dict(cfg):
        parent[name] = value


def _parent_of(cfg: DictConfig, key: str) -> tuple[DictConfig | ListConfig, str | int]:
    """The node that holds the last part of `key`, and that part (an int in a list)."""
    node: Any = cfg
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if isinstance(node, ListConfig):
            if not part.isdigit() or int(part) >= len(node):
                raise ValueError(
                    f"key '{key}': '{'.'.join(parts[:depth])}' is a list of {len(node)} items, "
                    f"expected an index below that, got '{part}'"
                )
            name: str | int = int(part)
        elif isinstance(node, DictConfig):
            name = part
        else:
            raise ValueError(
                f"key '{key}': '{'.'.join(parts[:depth])}' has no keys, it is {_text(node)}"
            )
        if depth == len(parts) - 1:
            return node, name
        if isinstance(node, DictConfig) and part not in list(node.keys()):
            raise ValueError(_unknown(cfg, key))
        node = node[name]
    raise AssertionError("a key has at least one part")


def _is_known(parent: DictConfig | ListConfig, name: str | int, key: str) -> bool:
    if isinstance(parent, ListConfig) or name in list(parent.keys()):
        return True
    if key.startswith("train.") and key.count(".") == 1:
        return name in TrainSettings.defaults()
    parameters = _parameters(parent)
    return parameters is not None and (name in parameters or _takes_any(parameters))


def _unknown(cfg: DictConfig, key: str) -> str:
    known = list(list_keys(cfg))
    last = key.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.7)
    same_name = [name for name in known if name.rsplit(".", 1)[-1] == last]
    near = list(dict.fromkeys([*near, *same_name]))[:4]
    return (
        f"unknown key '{key}'"
        + (f"; nearest: {', '.join(near)}" if near else "")
        + "; --list-keys shows all of them"
    )


def _check_calls(cfg: DictConfig) -> None:
    """Refuse arguments in the file that the callable they are written for does not take."""
    for path, node in _sections(cfg):
        parameters = _parameters(node)
        if parameters is None or _takes_any(parameters):
            continue
        for name in node:
            if name != _TARGET and name not in parameters:
                near = difflib.get_close_matches(name, parameters, n=3)
                raise ValueError(
                    f"unknown key '{_join(path, name)}': {_call_name(node)} has no parameter "
                    f"'{name}'; {'nearest: ' if near else 'it takes: '}"
                    f"{', '.join(near or parameters)}"
                )


def _sections(node: Any, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Every dict of the config with its dotted path; interpolations are not followed."""
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation():
        yield path, node
        for name in node:
            yield from _sections(node._get_node(name), _join(path, name))
    elif isinstance(node, ListConfig) and not node._is_none() and not node._is_interpolation():
        for index in range(len(node)):
            yield from _sections(node._get_node(index), _join(path, index))


def _unset(path: str, node: DictConfig) -> dict[str, str]:
    """Parameters that the config does not set, with their defaults as text."""
    if path == "train":
        return {k: f"(default {v!r})" for k, v in TrainSettings.defaults().items() if k not in node}
    return {
        name: "(required)" if p.default is p.empty else f"(default {p.default!r})"
        for name, p in (_parameters(node) or {}).items()
        if name not in list(node.keys()) and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }


def _parameters(node: DictConfig) -> Mapping[str, inspect.Parameter] | None:
    """The parameters of the callable that a node names, or None for a plain dict or builtin."""
    if _TARGET not in list(node.keys()):
        return None
    target = node[_TARGET]
    target = pydoc.locate(target) if isinstance(target, str) else target
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):  # not inspectable: calling it will tell
        return None


def _takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _call_name(node: DictConfig) -> str:
    target = node[_TARGET] if _TARGET in list(node.keys()) else None
    if target is None:
        return "{...}"
    return target if isinstance(target, str) else getattr(target, "__qualname__", str(target))


def _text(node: Any) -> str:
    value = node._value() if hasattr(node, "_value") and not OmegaConf.is_config(node) else node
    return getattr(value, "__qualname__", None) or repr(value)


def _join(path: str, name: str | int) -> str:
    return f"{path}.{name}" if path else str(name)
