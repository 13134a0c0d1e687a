"""Tools are scripts, not modules of a package: tests import them from their files."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def tool(request: pytest.FixtureRequest) -> ModuleType:
    """The script whose path the test module gives as TOOL."""
    path = request.module.TOOL
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where worker processes look for its functions
    spec.loader.exec_module(module)
    return module
