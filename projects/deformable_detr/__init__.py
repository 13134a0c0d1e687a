"""Deformable DETR: one-stage, with iterative box refinement, and two-stage."""

from predet.projects.deformable_detr.modeling import DeformableDETR
from predet.projects.deformable_detr.queries import LearnedQueries, ProposalQueries
from predet.projects.deformable_detr.transformer import DeformableTransformer

__all__ = ["DeformableDETR", "DeformableTransformer", "LearnedQueries", "ProposalQueries"]
