"""Data sets and what is known about them, by name. Contract: `detectron2.data` catalogs."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class _DatasetCatalog(UserDict):
    """Name -> function without arguments that returns the data set as `list[dict]`."""

    def register(self, name: str, func: Callable[[], list[dict]]) -> None:
        """Add a data set.

        Raises:
            ValueError: the name is taken.
            TypeError: `func` cannot be called.
        """
        if not callable(func):
            raise TypeError(f"data set {name!r} must be registered with a function, got {func!r}")
        if name in self:
            raise ValueError(f"data set {name!r} is already registered")
        self[name] = func

    def get(self, name: str) -> list[dict]:
        """Call the function registered under `name`.

        Raises:
            KeyError: there is none.
        """
        if name not in self:
            known = ", ".join(self) or "none"
            raise KeyError(f"data set {name!r} is not registered; registered are: {known}")
        return self[name]()

    def list(self) -> list[str]:
        return list(self.data)

    def remove(self, name: str) -> None:
        self.pop(name)

    def __repr__(self) -> str:
        return f"DatasetCatalog({', '.join(self)})"


class Metadata(SimpleNamespace):
    """Attributes of a data set, such as `thing_classes`. Once set they do not change.

    Setting one to an equal value again is allowed; another value raises ValueError.
    """

    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:
        known = ", ".join(self.__dict__) or "none"
        raise AttributeError(
            f"data set {self.name!r} has no {key!r} in its metadata; it has {known}"
        )

    def __setattr__(self, key: str, value: Any) -> None:
        if key in self.__dict__ and self.__dict__[key] != value:
            raise ValueError(
                f"{key!r} of data set {self.name!r} is {self.__dict__[key]!r} and cannot become "
                f"{value!r}"
            )
        super().__setattr__(key, value)

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key, default)

    def set(self, **attributes: Any) -> Metadata:
        """Set several attributes; returns itself."""
        for key, value in attributes.items():
            setattr(self, key, value)
        return self

    def as_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


class _MetadataCatalog(UserDict):
    """Name -> `Metadata`; the same object each time, made when it is first asked for."""

    def get(self, name: str) -> Metadata:
        if not name:
            raise ValueError("metadata need the name of a data set, got an empty one")
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]

    def list(self) -> list[str]:
        return list(self.data)

    def remove(self, name: str) -> None:
        self.pop(name)

    def __repr__(self) -> str:
        return f"MetadataCatalog({', '.join(self)})"


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
