"""RetinaNet (Lin et al., ICCV 2017) and FCOS (Tian et al., ICCV 2019) of torchvision.

Legend: B images, P predictions of an image (places x anchors), K classes, A anchors at a place, C
channels of the pyramid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchvision.models.detection as tv
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from predet.layers.convolution import of_any_width
from predet.layers.norm import NormName
from predet.modeling.images import PIXEL_MEAN, PIXEL_STD, ImageBatch
from predet.modeling.regions import Regions, sample_regions, take_neighbourhoods
from predet.projects.torchvision_detectors.detector import (
    NoBackbone,
    Target,
    TorchvisionDetector,
    as_image_list,
    build_neck,
    pyramid_strides,
    to_float,
)

_ASSIGNMENT = "assignment"
_CLASSIFICATION = "network.head.classification_head.cls_logits"
_REGRESSION = "network.head.regression_head"
_EXTRA_LEVELS = 2
_LOSS_NAMES = {
    "classification": "loss_class",
    "bbox_regression": "loss_bbox",
    "bbox_ctrness": "loss_centerness",
}


class DenseDetector(TorchvisionDetector):
    """What predicts at every place of a pyramid: strides of the backbone's maps and two more.

    A subclass makes `network`, whose head is an `_Assigning` one.
    """

    class_layers = (_CLASSIFICATION,)
    neighbourhood: int  # radius of what the contrast head reads around a place

    def losses(
        self, images: ImageBatch, features: dict[str, Tensor], targets: list[Target]
    ) -> dict[str, Tensor]:
        """Of classes and boxes."""
        maps = list(features.values())
        anchors = self._anchors(images, maps)
        losses = self._losses_of(self.network.head(maps), anchors, maps, targets)
        losses.pop(_ASSIGNMENT)
        return {_LOSS_NAMES[name]: loss for name, loss in losses.items()}

    def detect(self, images: ImageBatch, features: dict[str, Tensor]) -> list[Target]:
        """The best detections after non-maximum suppression in each class."""
        network, maps = self.network, list(features.values())
        places = [m.shape[2] * m.shape[3] for m in maps]
        outputs = network.head(maps)
        per_place = outputs["cls_logits"].shape[1] // sum(places)
        lengths = [n * per_place for n in places]
        by_level = {name: list(x.split(lengths, dim=1)) for name, x in outputs.items()}
        anchors = [list(a.split(lengths)) for a in self._anchors(images, maps)]
        return network.postprocess_detections(by_level, anchors, list(images.sizes))

    def regions(self, batch: Sequence[Mapping[str, Any]], *, max_regions: int) -> Regions:
        """Anchors or points of instances first, then background; see the base class.

        Background is drawn inside of the images, not from their padding.
        """
        images, targets = self.preprocess(batch), self.prepare_targets(batch)
        maps = list(self.features(images).values())
        tower = self.network.head.classification_head.conv
        read = [tower(m).float() for m in maps]
        anchors = self._anchors(images, maps)
        losses = self._box_losses(anchors, maps, targets)
        assigned = _rows_of(losses.pop(_ASSIGNMENT), targets)  # (B, P)
        assigned[(assigned == -1) & _in_padding(anchors, images.sizes)] = -2
        chosen = sample_regions(assigned.flatten(), max_regions=max_regions)
        image = torch.div(chosen, assigned.shape[1], rounding_mode="floor")
        prediction = chosen % assigned.shape[1]
        place = torch.div(prediction, self.region_slots, rounding_mode="floor")
        return Regions(
            features=take_neighbourhoods(read, image, place, radius=self.neighbourhood),
            slots=prediction % self.region_slots,
            instances=assigned.flatten()[chosen],
            losses={_LOSS_NAMES[name]: loss for name, loss in losses.items()},
        )

    def freeze_unused_by_regions(self) -> None:
        """The last classification layer."""
        self.get_submodule(_CLASSIFICATION).requires_grad_(False)

    def _anchors(self, images: ImageBatch, maps: list[Tensor]) -> list[Tensor]:
        """(P, 4) xyxy of each image."""
        return self.network.anchor_generator(as_image_list(images), maps)

    def _box_losses(
        self, anchors: list[Tensor], maps: list[Tensor], targets: list[Target]
    ) -> dict[str, Tensor]:
        """Losses without classes, and the assignment."""
        outputs = self._regress(maps)
        # Of one class, told with logits that nothing depends on: this loss is dropped.
        outputs["cls_logits"] = torch.zeros_like(outputs["bbox_regression"][..., :1])
        targets = [{**t, "labels": torch.zeros_like(t["labels"])} for t in targets]
        losses = self._losses_of(outputs, anchors, maps, targets)
        losses.pop("classification")
        return losses

    def _regress(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """Outputs of the regression head alone."""
        raise NotImplementedError

    def _losses_of(
        self,
        outputs: dict[str, Tensor],
        anchors: list[Tensor],
        maps: list[Tensor],
        targets: list[Target],
    ) -> dict[str, Tensor]:
        """torchvision's losses and the assignment, of the head's outputs."""
        return self.network.compute_loss(targets, outputs, anchors)


class _Assigning(nn.Module):
    """A head whose losses carry which box each prediction is assigned to."""

    def compute_loss(
        self,
        targets: list[Target],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Any]:
        losses = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        return {**losses, _ASSIGNMENT: matched_idxs}


class _RetinaNetHead(_Assigning, RetinaNetHead):
    pass


class _FCOSHead(_Assigning, FCOSHead):
    pass


class RetinaNet(DenseDetector):
    """torchvision's RetinaNet: nine anchors at a place, focal loss, L1 loss of boxes.

    Args:
        backbone: maps whose strides double, the papers' are 8, 16 and 32.
        num_classes: contiguous classes.
        neck_channels: of the pyramid.
        neck_norm: after each convolution of the pyramid; None for none, as torchvision has it.
        anchor_scale: side of the smallest anchors in strides; they are 32 pixels at stride 8.
        score_threshold, nms_threshold, candidates, detections_per_image: of detection, values are
            torchvision's. The candidates are those of one level.
        pixel_mean, pixel_std, size_divisibility: as in the base class.
    """

    last_layers = (_CLASSIFICATION, f"{_REGRESSION}.bbox_reg")
    neighbourhood = 0

    def __init__(
        self,
        *,
        backbone: nn.Module,
        num_classes: int,
        neck_channels: int = 256,
        neck_norm: NormName | None = None,
        anchor_scale: float = 4.0,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        candidates: int = 1000,
        detections_per_image: int = 300,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        size_divisibility: int = 32,
    ) -> None:
        neck = _neck(backbone, neck_channels, neck_norm)
        anchors = _octave_anchors(pyramid_strides(backbone, _EXTRA_LEVELS), anchor_scale)
        per_place = anchors.num_anchors_per_location()[0]
        network = tv.RetinaNet(
            NoBackbone(neck_channels),
            num_classes,
            anchor_generator=anchors,
            head=_RetinaNetHead(neck_channels, per_place, num_classes),
            score_thresh=score_threshold,
            nms_thresh=nms_threshold,
            topk_candidates=candidates,
            detections_per_img=detections_per_image,
        )
        network.head.register_forward_hook(to_float)
        super().__init__(
            backbone=backbone,
            neck=neck,
            network=network,
            num_classes=num_classes,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            size_divisibility=size_divisibility,
        )
        self.region_channels, self.region_slots = neck_channels, per_place

    def _regress(self, maps: list[Tensor]) -> dict[str, Tensor]:
        return {"bbox_regression": self.network.head.regression_head(maps).float()}


class FCOS(DenseDetector):
    """torchvision's FCOS: one point at a place, focal loss, GIoU loss of boxes, centerness.

    Args:
        backbone: maps whose strides double, the paper's are 8, 16 and 32.
        num_classes: contiguous classes.
        neck_channels, neck_norm: as in `RetinaNet`.
        center_sampling_radius: of the part of a box whose points learn it, in strides.
        score_threshold, nms_threshold, candidates, detections_per_image: as in `RetinaNet`;
            torchvision's values.
        pixel_mean, pixel_std, size_divisibility: as in the base class.
    """

    last_layers = (_CLASSIFICATION, f"{_REGRESSION}.bbox_reg", f"{_REGRESSION}.bbox_ctrness")
    neighbourhood = 1

    def __init__(
        self,
        *,
        backbone: nn.Module,
        num_classes: int,
        neck_channels: int = 256,
        neck_norm: NormName | None = None,
        center_sampling_radius: float = 1.5,
        score_threshold: float = 0.2,
        nms_threshold: float = 0.6,
        candidates: int = 1000,
        detections_per_image: int = 100,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        size_divisibility: int = 32,
    ) -> None:
        neck = _neck(backbone, neck_channels, neck_norm)
        strides = pyramid_strides(backbone, _EXTRA_LEVELS)
        points = AnchorGenerator(tuple((s,) for s in strides), ((1.0,),) * len(strides))
        network = tv.FCOS(
            NoBackbone(neck_channels),
            num_classes,
            anchor_generator=points,
            head=_FCOSHead(neck_channels, 1, num_classes),
            center_sampling_radius=center_sampling_radius,
            score_thresh=score_threshold,
            nms_thresh=nms_threshold,
            topk_candidates=candidates,
            detections_per_img=detections_per_image,
        )
        # Sides begin one stride from the point. Torchvision's begin at 0, and a ReLU cuts them, in
        # the place of the paper's exponential: if two that face each other are cut everywhere, no
        # gradient moves them again.
        nn.init.ones_(network.head.regression_head.bbox_reg.bias)
        network.head.register_forward_hook(to_float)
        super().__init__(
            backbone=backbone,
            neck=neck,
            network=network,
            num_classes=num_classes,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            size_divisibility=size_divisibility,
        )
        self.region_channels = neck_channels * (2 * self.neighbourhood + 1) ** 2

    def _regress(self, maps: list[Tensor]) -> dict[str, Tensor]:
        boxes, centerness = self.network.head.regression_head(maps)
        return {"bbox_regression": boxes.float(), "bbox_ctrness": centerness.float()}

    def _losses_of(
        self,
        outputs: dict[str, Tensor],
        anchors: list[Tensor],
        maps: list[Tensor],
        targets: list[Target],
    ) -> dict[str, Tensor]:
        places = [m.shape[2] * m.shape[3] for m in maps]
        return self.network.compute_loss(targets, outputs, anchors, places)


def _neck(backbone: nn.Module, channels: int, norm: NormName | None) -> FeaturePyramidNetwork:
    """A pyramid with two levels more than the backbone has maps."""
    extra = LastLevelP6P7(channels, channels)
    of_any_width(extra.p6), of_any_width(extra.p7)
    return build_neck(backbone, channels=channels, norm=norm, extra_blocks=extra)


def _octave_anchors(strides: Sequence[int], scale: float) -> AnchorGenerator:
    """Three sizes an octave and three shapes at each place, rounded as torchvision's are."""
    sides = [scale * stride for stride in strides]
    sizes = tuple(tuple(int(side * 2 ** (k / 3)) for k in range(3)) for side in sides)
    return AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))


def _rows_of(assignment: list[Tensor], targets: list[Target]) -> Tensor:
    """Numbers of an image's boxes -> (B, P) rows among all instances; -1 and -2 stay."""
    rows = []
    for matched, target in zip(assignment, targets, strict=True):
        if not len(target["rows"]):
            rows.append(matched)
            continue
        rows.append(torch.where(matched >= 0, target["rows"][matched.clamp(min=0)], matched))
    return torch.stack(rows)


def _in_padding(anchors: list[Tensor], sizes: Sequence[tuple[int, int]]) -> Tensor:
    """(B, P) bool, whether the centre of an anchor lies beyond its image of (height, width)."""
    centers = torch.stack([(a[:, :2] + a[:, 2:]) / 2 for a in anchors])  # (B, P, 2) as (x, y)
    ends = centers.new_tensor(sizes).flip(1)[:, None]  # (B, 1, 2) as (width, height)
    return (centers >= ends).any(dim=2)
