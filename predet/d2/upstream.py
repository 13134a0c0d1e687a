"""Detectron2's own objects under the names of the table. Only here is known where they live."""

from detectron2.config import LazyCall, LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser, launch
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.layers import ShapeSpec
from detectron2.structures import BitMasks, Boxes, BoxMode, ImageList, Instances
from detectron2.utils import comm
from detectron2.utils.visualizer import Visualizer

__all__ = [
    "BitMasks",
    "BoxMode",
    "Boxes",
    "DatasetCatalog",
    "DatasetEvaluator",
    "DatasetEvaluators",
    "ImageList",
    "Instances",
    "LazyCall",
    "LazyConfig",
    "MetadataCatalog",
    "ShapeSpec",
    "Visualizer",
    "comm",
    "default_argument_parser",
    "instantiate",
    "launch",
]
