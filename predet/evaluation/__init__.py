"""Measuring detectors and boxes: COCO AP and AR, precision and recall of the best boxes."""

from predet.evaluation.coco import COCOEvaluator
from predet.evaluation.loop import evaluate, evaluation_mode

__all__ = ["COCOEvaluator", "evaluate", "evaluation_mode"]
