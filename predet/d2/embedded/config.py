"""Configs written in Python: `LazyCall` describes a call, `LazyConfig` loads, changes and saves.

Contract: `detectron2.config.LazyCall` and `LazyConfig`. How ours differ: a YAML file is never
allowed to build objects while it is read, nothing is pickled on saving, and values on the command
line are read by our own grammar (`overrides.py`).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig

from predet.d2.embedded import loading, render
from predet.d2.embedded import overrides as grammar
from predet.d2.embedded.instantiate import target_name


class LazyCall:
    """`LazyCall(target)(a=1)` is a config that says "call target with a=1"; `instantiate` does it.

    Args:
        target: what to call: a callable, its dotted name, or a config that builds a callable.

    Raises:
        TypeError: `target` is none of these.
    """

    def __init__(self, target: Callable | str | Mapping):
        if not (callable(target) or isinstance(target, (str, Mapping))):
            raise TypeError(f"LazyCall needs something to call, or its name; got {target!r}")
        self._target = target

    def __call__(self, **arguments: Any) -> DictConfig:
        # omegaconf takes a dataclass for a schema, so that one goes in by name.
        target = target_name(self._target) if is_dataclass(self._target) else self._target
        content: dict = {**arguments, "_target_": target}
        return DictConfig(content, flags={"allow_objects": True})


class LazyConfig:
    """Loads, changes and saves configs."""

    @staticmethod
    def load(filename: str | os.PathLike, keys: str | tuple[str, ...] | None = None) -> Any:
        """Read a config file, Python or YAML.

        Args:
            filename: ends in .py, .yaml or .yml.
            keys: the name of one value, or names of several, to return instead of all.

        Returns:
            A `DictConfig` of all configs in the file; the one value; or a tuple of values.

        Raises:
            ValueError: the file is of another kind, or is YAML that cannot be read.
            KeyError: the file has no value of that name.
        """
        path = os.fspath(filename)
        extension = os.path.splitext(path)[1]
        if extension == ".py":
            namespace: Any = loading.load_python(path)
        elif extension in (".yaml", ".yml"):
            namespace = loading.load_yaml(path)
        else:
            raise ValueError(f"config file {path}: expected .py, .yaml or .yml, got {extension!r}")
        if keys is not None:
            return _select(namespace, keys, path)
        return loading.config_values(namespace) if extension == ".py" else namespace

    @staticmethod
    def load_rel(filename: str | os.PathLike, keys: str | tuple[str, ...] | None = None) -> Any:
        """`load`, with the path relative to the file of the caller."""
        frame = inspect.currentframe()
        assert frame is not None
        assert frame.f_back is not None
        folder = os.path.dirname(frame.f_back.f_code.co_filename)
        return LazyConfig.load(os.path.join(folder, filename), keys)

    @staticmethod
    def save(cfg: DictConfig | ListConfig, filename: str | os.PathLike) -> None:
        """Write a config as YAML. See `render.save_yaml` for what can be read again."""
        render.save_yaml(cfg, os.fspath(filename))

    @staticmethod
    def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
        """Set `key=value` strings in `cfg`, in place. See `overrides.apply_overrides`."""
        return grammar.apply_overrides(cfg, overrides)

    @staticmethod
    def to_py(cfg: DictConfig, prefix: str = "cfg.") -> str:
        """The config as Python-like text for people, references resolved, keys sorted."""
        return render.to_python(cfg, prefix)


def _select(namespace: Mapping, keys: str | tuple[str, ...], path: str) -> Any:
    for key in (keys,) if isinstance(keys, str) else keys:
        if key not in namespace:
            raise KeyError(f"config file {path} has no {key!r}")
    if isinstance(keys, str):
        return loading.as_config(namespace[keys])
    return tuple(loading.as_config(namespace[key]) for key in keys)
