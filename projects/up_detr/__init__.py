"""UP-DETR: a detector learns to find random patches of an image in that image."""

from predet.projects.up_detr.localization import (
    Controls,
    Localization,
    cut_patches,
    localization,
    mean_boxes,
    swapped,
    with_controls,
)
from predet.projects.up_detr.modeling import UPDETR, Found

__all__ = [
    "UPDETR",
    "Controls",
    "Found",
    "Localization",
    "cut_patches",
    "localization",
    "mean_boxes",
    "swapped",
    "with_controls",
]
