"""From the description of a call (`_target_` and arguments) to the object; from objects to names.

Contract: `detectron2.config.instantiate`.
"""

from __future__ import annotations

import builtins
import importlib
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from types import ModuleType
from typing import Any

import omegaconf
from omegaconf import DictConfig, ListConfig, OmegaConf

logger = logging.getLogger(__name__)

# omegaconf keeps tuples apart from lists from version 2.4 on.
TupleConfig: type | None = getattr(omegaconf, "TupleConfig", None)


def instantiate(cfg: Any) -> Any:
    """Build what a config describes.

    A mapping with `_target_` is called with its other entries as keyword arguments, which are
    instantiated first; lists and tuples are instantiated item by item; configs made from a
    dataclass become that dataclass. Anything else, a mapping without `_target_` included, comes
    back as it is: what lies inside a plain mapping is not instantiated.

    Raises:
        ImportError: `_target_` is a name that leads nowhere.
        TypeError: `_target_` cannot be called, or not with these arguments.
    """
    if isinstance(cfg, ListConfig):
        return ListConfig([instantiate(item) for item in cfg], flags={"allow_objects": True})
    if TupleConfig is not None and isinstance(cfg, TupleConfig):
        items = tuple(instantiate(item) for item in cfg)
        return TupleConfig(items, flags={"allow_objects": True})
    if isinstance(cfg, list):
        return [instantiate(item) for item in cfg]
    if isinstance(cfg, DictConfig) and is_dataclass(OmegaConf.get_type(cfg)):
        return OmegaConf.to_object(cfg)
    if isinstance(cfg, Mapping) and "_target_" in cfg:
        return _call(cfg)
    return cfg


def _call(cfg: Mapping) -> Any:
    arguments = {key: instantiate(value) for key, value in cfg.items()}
    target = arguments.pop("_target_")
    if isinstance(target, str):
        target = locate(target)
    if not callable(target):
        raise TypeError(f"_target_ must be something to call, got {target!r}")
    try:
        return target(**arguments)
    except TypeError:
        logger.error("cannot call %s with %s", _describe(target), ", ".join(arguments) or "nothing")
        raise


def locate(name: str) -> Any:
    """The object with a dotted name, such as `torch.nn.Linear` or `len`; imports what it needs.

    Raises:
        ImportError: no such object; an import that fails inside one of the modules is not hidden.
    """
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        raise ImportError(f"cannot find {name!r}: not a dotted name")
    for length in range(len(parts), 0, -1):
        module = _import_if_there(".".join(parts[:length]))
        rest = parts[length:]
        # A package may hold a function under the name of one of its modules: the function is meant.
        if module is None or (not rest and length > 1):
            continue
        return _attribute(module, rest, name)
    if hasattr(builtins, parts[0]):
        return _attribute(builtins, parts, name)
    raise ImportError(f"cannot find {name!r}: there is no module {parts[0]!r}")


def target_name(target: Callable) -> str:
    """The shortest dotted name under which an imported class or function can be found.

    `torch.nn.modules.linear.Linear` is `torch.nn.Linear`. Where no name leads back to it (a lambda,
    a function inside a function) this is still where it was defined.

    Raises:
        AttributeError: the object has no name of its own (a `functools.partial`, say).
    """
    module, qualname = target.__module__, target.__qualname__
    parts = module.split(".")
    for length in range(1, len(parts)):
        prefix = ".".join(parts[:length])
        if prefix in sys.modules and _leads_to(sys.modules[prefix], qualname, target):
            return f"{prefix}.{qualname}"
    return f"{module}.{qualname}"


def can_be_located(target: Any) -> bool:
    """Whether `locate(target_name(target))` gives the same object again."""
    try:
        return locate(target_name(target)) is target
    except (AttributeError, ImportError, ValueError):
        return False


def _import_if_there(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(missing + "."):
            return None
        raise  # the module is there, but something that it imports is not


def _attribute(module: ModuleType, attributes: list[str], name: str) -> Any:
    try:
        return _walk(module, attributes)
    except AttributeError as error:
        raise ImportError(f"cannot find {name!r}: {error}") from error


def _walk(start: Any, attributes: list[str]) -> Any:
    for attribute in attributes:
        start = getattr(start, attribute)
    return start


def _leads_to(module: ModuleType, qualname: str, target: Any) -> bool:
    try:
        return _walk(module, qualname.split(".")) is target
    except AttributeError:
        return False


def _describe(target: Any) -> str:
    try:
        return target_name(target)
    except AttributeError:
        return repr(target)
