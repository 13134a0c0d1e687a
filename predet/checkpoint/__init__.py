"""Checkpoints: plain data, written atomically, read without running code, transferred strictly."""

from predet.checkpoint.files import DamagedCheckpointError, read_checkpoint, save_checkpoint
from predet.checkpoint.store import Checkpoints
from predet.checkpoint.transfer import (
    TransferReport,
    class_names_of,
    head_classes_of,
    load_detector,
    reinit_for_classes,
    weights_of,
)

__all__ = [
    "Checkpoints",
    "DamagedCheckpointError",
    "TransferReport",
    "class_names_of",
    "head_classes_of",
    "load_detector",
    "read_checkpoint",
    "reinit_for_classes",
    "save_checkpoint",
    "weights_of",
]
