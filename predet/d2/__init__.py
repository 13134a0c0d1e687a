"""The part of Detectron2's interface that predet is written against, from one of two sides.

If a working Detectron2 is installed, the names below *are* Detectron2's objects; else they come
from `predet.d2.embedded`, our implementation of the same contract. The environment variable
PREDET_D2=detectron2 or =embedded forces a side. `SIDE` says which it is and `SIDE_REASON` why.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from typing import TYPE_CHECKING

logger = logging.getLogger(__name__)

SIDES = ("detectron2", "embedded")


def _choose(forced: str) -> tuple[str, str]:
    """The side, and the reason in a few words.

    Raises:
        ValueError: `forced` is not a side.
        ImportError: Detectron2 is forced and cannot be imported.
    """
    if forced and forced not in SIDES:
        raise ValueError(f"PREDET_D2 must be one of {', '.join(SIDES)} or unset, got {forced!r}")
    if forced == "embedded":
        return "embedded", "PREDET_D2 says so"
    if not _is_installed():
        if forced:
            raise ImportError("PREDET_D2=detectron2, but Detectron2 is not installed")
        return "embedded", "Detectron2 is not installed"
    try:
        importlib.import_module("predet.d2.upstream")
    except Exception as error:  # whatever a broken installation raises
        problem = f"{type(error).__name__}: {error}"
        if forced:
            raise ImportError(
                f"PREDET_D2=detectron2, but the Detectron2 installed here is broken: {problem}"
            ) from error
        logger.warning(
            "the Detectron2 installed here is broken, so predet uses its own: %s", problem
        )
        return "embedded", f"the Detectron2 installed here is broken ({problem})"
    return "detectron2", "PREDET_D2 says so" if forced else "it is installed"


def _is_installed() -> bool:
    """A folder that happens to be called detectron2, a clone of its repository say, is not."""
    spec = importlib.util.find_spec("detectron2")
    return spec is not None and spec.origin is not None


SIDE, SIDE_REASON = _choose(os.environ.get("PREDET_D2", ""))
logger.info("the Detectron2 interface is %s: %s", SIDE, SIDE_REASON)

if TYPE_CHECKING or SIDE == "embedded":
    from predet.d2.embedded import (
        BitMasks,
        Boxes,
        BoxMode,
        DatasetCatalog,
        DatasetEvaluator,
        DatasetEvaluators,
        ImageList,
        Instances,
        LazyCall,
        LazyConfig,
        MetadataCatalog,
        ShapeSpec,
        Visualizer,
        comm,
        default_argument_parser,
        instantiate,
        launch,
    )
else:
    from predet.d2.upstream import (
        BitMasks,
        Boxes,
        BoxMode,
        DatasetCatalog,
        DatasetEvaluator,
        DatasetEvaluators,
        ImageList,
        Instances,
        LazyCall,
        LazyConfig,
        MetadataCatalog,
        ShapeSpec,
        Visualizer,
        comm,
        default_argument_parser,
        instantiate,
        launch,
    )

__all__ = [
    "SIDE",
    "SIDE_REASON",
    "BitMasks",
    "BoxMode",
    "Boxes",
    "DatasetCatalog",
    "DatasetEvaluator",
    "DatasetEvaluators",
    "ImageList",
    "Instances",
    "LazyCall",
    "LazyConfig",
    "MetadataCatalog",
    "ShapeSpec",
    "Visualizer",
    "comm",
    "default_argument_parser",
    "instantiate",
    "launch",
]
