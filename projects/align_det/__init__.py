"""AlignDet: pre-train a detector on proposals, by contrast between two views and regression."""

from predet.projects.align_det.modeling import AlignDet

__all__ = ["AlignDet"]
