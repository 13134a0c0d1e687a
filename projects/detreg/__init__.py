"""DETReg: pre-train a detector on region proposals and embeddings of regions."""

from predet.projects.detreg.modeling import DETReg

__all__ = ["DETReg"]
