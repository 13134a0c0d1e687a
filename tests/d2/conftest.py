"""Both sides of the Detectron2 seam, imported directly: each contract test runs on each of them."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

MODULES = {"embedded": "predet.d2.embedded", "detectron2": "predet.d2.upstream"}


def why_absent(side: str) -> str:
    """Why a side cannot be tested; empty if it can."""
    try:
        importlib.import_module(MODULES[side])
    except Exception as error:  # a broken installation may raise anything
        if side == "embedded":
            raise
        return f"{type(error).__name__}: {error}"
    return ""


ABSENT = {side: why_absent(side) for side in MODULES}


@pytest.fixture(params=[side for side in MODULES if not ABSENT[side]])
def side(request: pytest.FixtureRequest) -> str:
    """Name of a side that is here. `test_both_sides_are_tested` is skipped if one is not."""
    return request.param


@pytest.fixture
def d2(side: str) -> ModuleType:
    """The table of names of one side."""
    return importlib.import_module(MODULES[side])


@pytest.fixture
def absent_sides() -> dict[str, str]:
    """Sides that cannot be tested here, and why."""
    return {side: reason for side, reason in ABSENT.items() if reason}
