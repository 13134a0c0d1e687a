"""Simple self-training: pre-train a detector on the boxes and classes of a teacher."""

from predet.projects.self_training.modeling import SelfTraining

__all__ = ["SelfTraining"]
