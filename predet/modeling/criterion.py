"""The set loss of DETR (section 3.1) and of Deformable DETR, for all layers at once.

Losses come out weighted; the weight of a repeated loss is that of its base name, so `loss_bbox_3`
and `loss_bbox_enc` weigh as `loss_bbox`.

Deviation from the papers: they normalise each process's share by itself in the softmax loss, and
count at least one box a process. We normalise over the whole optimiser step where its counts are
known, so that processes and micro-batches do not change the loss (decision 10).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from predet.modeling.matcher import HungarianMatcher, Matches
from predet.modeling.outputs import DetectorOutput, EncoderOutput
from predet.modeling.targets import Targets
from predet.ops.boxes import cxcywh_to_xyxy, generalized_box_iou
from predet.ops.matching import Classification

LOSSES = ("loss_class", "loss_bbox", "loss_giou")


class SetCriterion(nn.Module):
    """Matches predictions to targets and returns the weighted losses of every decoder layer.

    The last layer's losses carry the base names, those of layer i before it the suffix `_i`, those
    of encoder proposals (two-stage detectors) `_enc`. Box losses are divided by the number of
    boxes averaged over the parts of the step (micro-batches of all processes); so is the focal
    loss. The softmax loss is the weighted mean over the queries of the step. So the losses of a
    step do not depend on how it is divided (`average_num_boxes`: what holds without its counts).

    Args:
        matcher: decides which query answers for which target; its `classification` is ours too.
        weights: of `loss_class`, `loss_bbox`, `loss_giou`.
        no_object_weight: class weight of "no object" in the softmax loss.
        focal_alpha: of the focal loss.
        focal_gamma: of the focal loss.
    """

    def __init__(
        self,
        *,
        matcher: HungarianMatcher,
        weights: Mapping[str, float],
        no_object_weight: float = 0.1,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
    ) -> None:
        super().__init__()
        if set(weights) != set(LOSSES):
            raise ValueError(f"weights must name {LOSSES}, got {sorted(weights)}")
        self.matcher = matcher
        self.weights = dict(weights)
        self.no_object_weight = no_object_weight
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma

    @property
    def classification(self) -> Classification:
        """ "softmax" or "focal", what the logits mean."""
        return self.matcher.classification

    def forward(
        self, output: DetectorOutput, targets: Targets, matches: Matches | None = None
    ) -> dict[str, Tensor]:
        """Weighted losses by name, scalars in fp32.

        Args:
            output: of the detector, on the whole batch.
            targets: of the same images.
            matches: of the decoder layers where the caller has them already, for a loss of its own.
        """
        num_boxes = average_num_boxes(targets, output.boxes.device)
        if matches is None:
            matches = self.match(output, targets)
        losses = self.layer_losses(output, targets, matches, num_boxes)
        if output.encoder is not None:
            losses |= self._encoder_losses(output.encoder, targets, num_boxes)
        return losses

    def match(self, output: DetectorOutput, targets: Targets) -> Matches:
        """The matching of all decoder layers."""
        return self.matcher(output.logits, output.boxes, targets)

    def layer_losses(
        self, output: DetectorOutput, targets: Targets, matches: Matches, num_boxes: Tensor
    ) -> dict[str, Tensor]:
        """Weighted losses of all decoder layers by name, for matches made before.

        Args:
            output: of the detector, on the whole batch.
            targets: of the same images.
            matches: of the decoder layers.
            num_boxes: scalar that box losses and the focal loss are divided by.
        """
        per_layer = self._losses(output.logits, output.boxes, targets, matches, num_boxes)
        last = len(output.boxes) - 1
        losses = {
            name if layer == last else f"{name}_{layer}": value
            for name, values in per_layer.items()
            for layer, value in enumerate(values)
        }
        return self._weigh(losses)

    def _encoder_losses(
        self, encoder: EncoderOutput, targets: Targets, num_boxes: Tensor
    ) -> dict[str, Tensor]:
        logits, boxes = encoder.logits[None], encoder.boxes[None]
        objects = targets.of_class_zero()
        matches = self.matcher(logits, boxes, objects)
        losses = self._losses(logits, boxes, objects, matches, num_boxes)
        return self._weigh({f"{name}_enc": values[0] for name, values in losses.items()})

    def _weigh(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.weights[base_name(name)] * value for name, value in losses.items()}

    def _losses(
        self, logits: Tensor, boxes: Tensor, targets: Targets, matches: Matches, num_boxes: Tensor
    ) -> dict[str, Tensor]:
        """Losses before weighting, each (L,), of logits (L, B, Q, K) and boxes (L, B, Q, 4)."""
        layer = torch.arange(len(boxes), device=boxes.device)[:, None]
        index = (layer, matches.image[None], matches.query)
        with torch.autocast(boxes.device.type, enabled=False):
            classes = targets.classes[matches.target]
            if self.classification == "softmax":
                loss_class = self._softmax_loss(logits.float(), index, classes, targets)
            else:
                loss_class = self._focal_loss(logits.float(), index, classes) / num_boxes
            # Of no pair at all these sums are zero, and still lead back to the box heads.
            predicted, wanted = boxes.float()[index], targets.boxes[matches.target]  # (L, P, 4)
            l1 = F.l1_loss(predicted, wanted, reduction="none").sum(dim=(1, 2))
            giou = generalized_box_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(wanted))
            return {
                "loss_class": loss_class,
                "loss_bbox": l1 / num_boxes,
                "loss_giou": (1 - giou).sum(dim=1) / num_boxes,
            }

    def _softmax_loss(
        self, logits: Tensor, index: tuple[Tensor, ...], classes: Tensor, targets: Targets
    ) -> Tensor:
        """Cross-entropy, the last column being "no object"; mean weighted by class weights."""
        no_object = logits.shape[-1] - 1
        wanted = torch.full(logits.shape[:3], no_object, device=logits.device)
        wanted[index] = classes
        weight = torch.ones(logits.shape[-1], device=logits.device)
        weight[no_object] = self.no_object_weight
        loss = F.cross_entropy(logits.permute(0, 3, 1, 2), wanted, weight, reduction="none")
        return loss.sum(dim=(1, 2)) / self._sum_of_weights(weight[wanted], targets.step_counts)

    def _sum_of_weights(self, weights: Tensor, step_counts: Tensor | None) -> Tensor:
        """Of the classes that the queries should have, weights (L, B, Q): averaged over the parts.

        Each target has a query of its own, as long as there are queries.
        """
        if step_counts is None:
            return weights.sum(dim=(1, 2))
        num_queries = weights.shape[2]
        objects = step_counts.clamp(min=0, max=num_queries).sum()
        others = (step_counts >= 0).sum() * num_queries - objects
        return (objects + self.no_object_weight * others) / len(step_counts)

    def _focal_loss(self, logits: Tensor, index: tuple[Tensor, ...], classes: Tensor) -> Tensor:
        """Sum over queries and classes; a query without a target is no class at all."""
        wanted = torch.zeros_like(logits)
        wanted[(*index, classes)] = 1
        loss = sigmoid_focal_loss(logits, wanted, alpha=self.focal_alpha, gamma=self.focal_gamma)
        return loss.sum(dim=(1, 2, 3))


def base_name(name: str) -> str:
    """The loss that a repeated one repeats: "loss_bbox_4" -> "loss_bbox"."""
    return re.sub(r"_(\d+|enc)$", "", name)


def average_num_boxes(targets: Targets, device: torch.device, copies: int = 1) -> Tensor:
    """Targets, each `copies` times, averaged over the parts of the step; a scalar on `device`.

    A step without any box counts as one with a single box. Where the counts of the step are not
    known (another trainer than ours), this batch and those of the other processes at this moment
    are taken for the parts, and the average is at least 1.
    """
    if targets.step_counts is not None:
        total = copies * targets.step_counts.clamp(min=0).sum()
        return total.clamp(min=1) / len(targets.step_counts)
    total = torch.tensor(float(copies * sum(targets.counts)), device=device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
        total = total / torch.distributed.get_world_size()
    return total.clamp(min=1)
