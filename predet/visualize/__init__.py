"""Figures and pictures: boxes on images, training batches, learning curves."""

from predet.visualize.boxes import draw_detections
from predet.visualize.curves import learning_curves
from predet.visualize.gradients import GradientPicture, draw_gradients
from predet.visualize.patches import PatchPicture, draw_patches
from predet.visualize.pictures import Panel, comparison, contact_sheet, draw_boxes, save_png
from predet.visualize.queries import draw_queries

__all__ = [
    "GradientPicture",
    "Panel",
    "PatchPicture",
    "comparison",
    "contact_sheet",
    "draw_boxes",
    "draw_detections",
    "draw_gradients",
    "draw_patches",
    "draw_queries",
    "learning_curves",
    "save_png",
]
