"""RetinaNet, FCOS, Faster R-CNN and Mask R-CNN of torchvision, with predet's batch contract."""

from predet.projects.torchvision_detectors.dense import FCOS, RetinaNet
from predet.projects.torchvision_detectors.two_stage import FasterRCNN, MaskRCNN

__all__ = ["FCOS", "FasterRCNN", "MaskRCNN", "RetinaNet"]
