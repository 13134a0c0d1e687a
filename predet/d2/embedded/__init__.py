"""The embedded default: our own small implementation of the part of Detectron2 that predet uses.

The names, arguments and results are those of Detectron2, so that code runs on either; where the
two differ on purpose the module says so, and errors are mostly ValueErrors rather than assertions.
"""

from predet.d2.embedded import comm
from predet.d2.embedded.arguments import default_argument_parser
from predet.d2.embedded.catalog import DatasetCatalog, MetadataCatalog
from predet.d2.embedded.config import LazyCall, LazyConfig
from predet.d2.embedded.evaluation import DatasetEvaluator, DatasetEvaluators
from predet.d2.embedded.instantiate import instantiate
from predet.d2.embedded.launch import launch
from predet.d2.embedded.shape_spec import ShapeSpec
from predet.d2.embedded.structures import BitMasks, Boxes, BoxMode, ImageList, Instances
from predet.d2.embedded.visualizer import Visualizer

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
