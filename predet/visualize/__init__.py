"""Figures and pictures: boxes on images, training batches, learning curves."""

from predet.visualize.boxes import draw_detections
from predet.visualize.curves import learning_curves
from predet.visualize.patches import PatchPicture, draw_patches
from predet.visualize.pictures import Panel, comparison, contact_sheet, draw_boxes, save_png

__all__ = [
    "Panel",
    "PatchPicture",
    "comparison",
    "contact_sheet",
    "draw_boxes",
    "draw_detections",
    "draw_patches",
    "learning_curves",
    "save_png",
]
