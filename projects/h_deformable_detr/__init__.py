"""H-Deformable DETR: Deformable DETR that also learns from one-to-many matching."""

from predet.projects.h_deformable_detr.criterion import HybridCriterion
from predet.projects.h_deformable_detr.modeling import HDeformableDETR
from predet.projects.h_deformable_detr.queries import MixedQueries

__all__ = ["HDeformableDETR", "HybridCriterion", "MixedQueries"]
