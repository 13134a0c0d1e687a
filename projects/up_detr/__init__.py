"""UP-DETR: a detector learns to find random patches of an image in that image."""

from predet.projects.up_detr.localization import Localization, localization, mean_boxes, swapped
from predet.projects.up_detr.modeling import UPDETR, Found

__all__ = ["UPDETR", "Found", "Localization", "localization", "mean_boxes", "swapped"]
