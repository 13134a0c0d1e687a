"""DETR."""

from predet.projects.detr.modeling import DETR

__all__ = ["DETR"]
