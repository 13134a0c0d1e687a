"""Reading config files: Python modules with relative imports of other configs, and YAML.

Contract: the loading half of `detectron2.config.LazyConfig`. A relative import inside a config
reads the file beside it, whatever packages there are; it gives a fresh copy each time, and a
`dict` arrives as a `DictConfig`. Absolute imports are those of Python: cached and shared.

The import statement of a config is redirected through the builtins of its own namespace, so
nothing changes for the rest of the process, whatever happens while the file is read.
"""

from __future__ import annotations

import builtins
import difflib
import os
from collections.abc import Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf

from predet.d2.embedded.instantiate import locate

PACKAGE = "predet_config_file"


def as_config(value: Any) -> Any:
    """A `dict` as a `DictConfig` that may hold any object; everything else unchanged."""
    if isinstance(value, dict):
        return DictConfig(value, flags={"allow_objects": True})
    return value


def load_python(path: str) -> dict[str, Any]:
    """Run a config file; returns its names and values."""
    return _execute(path, ())


def config_values(namespace: Mapping[str, Any]) -> DictConfig:
    """The configs among the values of a config file, private names left out."""
    kept = {
        name: as_config(value)
        for name, value in namespace.items()
        if isinstance(value, (DictConfig, ListConfig, dict)) and not name.startswith("_")
    }
    return DictConfig(kept, flags={"allow_objects": True})


def load_yaml(path: str) -> DictConfig | ListConfig:
    """Read a YAML config. Names of classes and functions are resolved; no object is built.

    Raises:
        ValueError: not YAML, or it asks for more than names.
    """
    with open(path, encoding="utf-8") as file:
        try:
            content = yaml.load(file, Loader=_Loader)
        except yaml.YAMLError as error:
            raise ValueError(f"cannot read config file {path}: {error}") from error
    return OmegaConf.create(content, flags={"allow_objects": True})


def _execute(path: str, importers: tuple[str, ...]) -> dict[str, Any]:
    chain = (*importers, os.path.realpath(path))

    def import_(name, globals=None, locals=None, fromlist=(), level=0) -> ModuleType:
        if level == 0:
            return builtins.__import__(name, globals, locals, fromlist, level)
        return _import_relative(path, name, fromlist or (), level, chain)

    with open(path, encoding="utf-8") as file:
        code = compile(file.read(), path, "exec")  # a SyntaxError names file and line
    stem = os.path.splitext(os.path.basename(path))[0]
    namespace: dict[str, Any] = {
        "__file__": path,
        "__name__": f"{PACKAGE}.{stem}",
        "__package__": PACKAGE,
        "__builtins__": {**vars(builtins), "__import__": import_},
    }
    exec(code, namespace)
    return namespace


def _import_relative(
    path: str, name: str, wanted: tuple[str, ...], level: int, chain: tuple[str, ...]
) -> Any:
    source = _relative_file(path, name, level)
    if os.path.realpath(source) in chain:
        circle = " -> ".join([*chain, os.path.realpath(source)])
        raise ImportError(f"configs import each other in a circle: {circle}")
    if "*" in wanted:
        raise ImportError(f"{path}: name what the config takes from {source} instead of '*'")
    values = _execute(source, chain)
    for item in wanted:
        if item not in values:
            close = difflib.get_close_matches(item, values, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ImportError(f"{path}: there is no {item!r} in {source}{hint}")
    return SimpleNamespace(**{item: as_config(values[item]) for item in wanted})


def _relative_file(path: str, name: str, level: int) -> str:
    folder = os.path.dirname(os.path.abspath(path))
    for _ in range(level - 1):
        folder = os.path.dirname(folder)
    if not name:
        raise ImportError(
            f"{path}: a relative import in a config names a config file, not a folder"
        )
    stem = os.path.join(folder, *name.split("."))
    if os.path.isfile(stem + ".py"):
        return stem + ".py"
    if os.path.isdir(stem):
        raise ImportError(f"{path}: a relative import in a config cannot import the folder {stem}")
    raise ImportError(f"{path}: cannot import {'.' * level}{name}: {stem}.py does not exist")


class _Loader(yaml.SafeLoader):
    """Plain YAML, with tuples and with the names of classes and functions."""


def _construct_name(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    return locate(suffix)


_Loader.add_constructor(
    "tag:yaml.org,2002:python/tuple",
    lambda loader, node: tuple(loader.construct_sequence(node, deep=True)),
)
_Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", _construct_name)
