"""Faster R-CNN (Ren et al., NeurIPS 2015) and Mask R-CNN (He et al., ICCV 2017) of torchvision.

Legend: B images, K classes, C channels of the pyramid, R regions of interest.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torchvision.models.detection as tv
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import (
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    TwoMLPHead,
)
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from predet.d2 import Instances
from predet.layers.norm import NormName, norm_layer
from predet.modeling.images import PIXEL_MEAN, PIXEL_STD, ImageBatch
from predet.modeling.regions import Regions, sample_regions
from predet.projects.torchvision_detectors.detector import (
    NoBackbone,
    Target,
    TorchvisionDetector,
    as_image_list,
    build_neck,
    pyramid_strides,
    to_float,
)

logger = logging.getLogger(__name__)

_POOLED = 7  # side of what a region of interest is pooled to, for its box
_POOLED_MASK = 14
_CLASSIFIER = "network.roi_heads.box_predictor.cls_score"
_REGRESSOR = "network.roi_heads.box_predictor.bbox_pred"
_MASK_PREDICTOR = "network.roi_heads.mask_predictor.mask_fcn_logits"
_LOSS_NAMES = {
    "loss_classifier": "loss_class",
    "loss_box_reg": "loss_bbox",
    "loss_objectness": "loss_objectness",
    "loss_rpn_box_reg": "loss_rpn_bbox",
    "loss_mask": "loss_mask",
}


class FasterRCNN(TorchvisionDetector):
    """torchvision's Faster R-CNN: proposals of three shapes a level, two fully connected layers.

    Args:
        backbone: maps whose strides double, the papers' are 4, 8, 16 and 32; the pyramid has one
            coarser level, for proposals only.
        num_classes: contiguous classes, without background.
        neck_channels: of the pyramid.
        neck_norm: after each convolution of the pyramid; None for none, as torchvision has it.
        anchor_scale: side of the anchors in strides; they are 32 pixels at stride 4.
        head_convolutions: 0: the head of a region is two fully connected layers. More: so many
            convolutions and one such layer; AlignDet has 4.
        head_norm: after these convolutions; None for none.
        representation_size: width of the fully connected layers.
        rpn_samples, rpn_positive_fraction: anchors of an image that the proposals' losses take,
            and the largest share of those with an object.
        roi_samples, roi_positive_fraction: the same for regions of interest.
        proposals_train, proposals_test: of one level before, and of an image after non-maximum
            suppression.
        score_threshold, nms_threshold, detections_per_image: of detection; torchvision's values.
        pixel_mean, pixel_std, size_divisibility: as in the base class.
    """

    first_label = 1  # 0 is the background
    class_layers: tuple[str, ...] = (_CLASSIFIER, _REGRESSOR)
    last_layers: tuple[str, ...] = (_CLASSIFIER, _REGRESSOR)

    def __init__(
        self,
        *,
        backbone: nn.Module,
        num_classes: int,
        neck_channels: int = 256,
        neck_norm: NormName | None = None,
        anchor_scale: float = 8.0,
        head_convolutions: int = 0,
        head_norm: NormName | None = None,
        representation_size: int = 1024,
        rpn_samples: int = 256,
        rpn_positive_fraction: float = 0.5,
        roi_samples: int = 512,
        roi_positive_fraction: float = 0.25,
        proposals_train: int = 2000,
        proposals_test: int = 1000,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections_per_image: int = 100,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        size_divisibility: int = 32,
    ) -> None:
        neck = build_neck(
            backbone, channels=neck_channels, norm=neck_norm, extra_blocks=LastLevelMaxPool()
        )
        sizes = tuple((anchor_scale * s,) for s in pyramid_strides(backbone, extra=1))
        network = tv.FasterRCNN(
            NoBackbone(neck_channels),
            rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
            rpn_pre_nms_top_n_train=proposals_train,
            rpn_post_nms_top_n_train=proposals_train,
            rpn_pre_nms_top_n_test=proposals_test,
            rpn_post_nms_top_n_test=proposals_test,
            rpn_batch_size_per_image=rpn_samples,
            rpn_positive_fraction=rpn_positive_fraction,
            box_roi_pool=_roi_align(backbone, _POOLED),
            box_head=_box_head(neck_channels, head_convolutions, head_norm, representation_size),
            box_predictor=FastRCNNPredictor(representation_size, num_classes + 1),
            box_batch_size_per_image=roi_samples,
            box_positive_fraction=roi_positive_fraction,
            box_score_thresh=score_threshold,
            box_nms_thresh=nms_threshold,
            box_detections_per_img=detections_per_image,
        )
        network.rpn.head.register_forward_hook(to_float)
        network.roi_heads.box_predictor.register_forward_hook(to_float)
        super().__init__(
            backbone=backbone,
            neck=neck,
            network=network,
            num_classes=num_classes,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            size_divisibility=size_divisibility,
        )
        self.region_channels = representation_size

    def losses(
        self, images: ImageBatch, features: dict[str, Tensor], targets: list[Target]
    ) -> dict[str, Tensor]:
        """Of the proposals and of the regions of interest."""
        proposals, losses = self.network.rpn(as_image_list(images), features, targets)
        _, more = self.network.roi_heads(features, proposals, list(images.sizes), targets)
        return {_LOSS_NAMES[name]: loss for name, loss in {**more, **losses}.items()}

    def detect(self, images: ImageBatch, features: dict[str, Tensor]) -> list[Target]:
        """The best detections after non-maximum suppression in each class."""
        proposals, _ = self.network.rpn(as_image_list(images), features)
        detections, _ = self.network.roi_heads(features, proposals, list(images.sizes))
        return detections

    def regions(self, batch: Sequence[Mapping[str, Any]], *, max_regions: int) -> Regions:
        """Proposals that have an instance, and the instances themselves; no background.

        A box is regressed by the outputs of its instance's class, as in training. So a detector of
        one class has one regressor for all instances, however many there are.
        """
        images, targets = self.preprocess(batch), self.prepare_targets(batch)
        features = self.features(images)
        proposals, losses = self.network.rpn(as_image_list(images), features, targets)
        roi_heads = self.network.roi_heads
        chosen = _positive_proposals(roi_heads, proposals, targets, max_regions)
        pooled = roi_heads.box_roi_pool(features, [c["boxes"] for c in chosen], list(images.sizes))
        read = roi_heads.box_head(pooled).float()
        losses["loss_box_reg"] = _box_loss(roi_heads, read, chosen)
        return Regions(
            features=read,
            slots=torch.zeros(len(read), dtype=torch.int64, device=read.device),
            instances=torch.cat([c["rows"] for c in chosen]),
            losses={_LOSS_NAMES[name]: loss for name, loss in losses.items()},
        )

    def freeze_unused_by_regions(self) -> None:
        """The classifier of regions of interest."""
        self.get_submodule(_CLASSIFIER).requires_grad_(False)


class MaskRCNN(FasterRCNN):
    """torchvision's Mask R-CNN. Without masks it trains boxes alone.

    Where the images of a batch have `gt_masks` beside their boxes (Detectron2's `BitMasks` in the
    frame of the image), their loss is `loss_mask`. Where none has, `loss_mask` and the gradients of
    the mask branch are 0. predet's own data has no masks, so that nothing but weight decay changes
    the branch there; AlignDet, which pre-trains without masks, freezes it.

    Args:
        mask_threshold: detections have `pred_masks` where the probability is so high; None leaves
            them out and saves their computation.
        arguments: of `FasterRCNN`.
    """

    class_layers = (*FasterRCNN.class_layers, _MASK_PREDICTOR)
    last_layers = (*FasterRCNN.last_layers, _MASK_PREDICTOR)

    def __init__(self, *, mask_threshold: float | None = 0.5, **arguments: Any) -> None:
        super().__init__(**arguments)
        channels = self.neck.layer_blocks[0][0].out_channels
        roi_heads = self.network.roi_heads
        roi_heads.mask_roi_pool = _roi_align(self.backbone, _POOLED_MASK)
        roi_heads.mask_head = MaskRCNNHeads(channels, (channels,) * 4, 1)
        roi_heads.mask_predictor = MaskRCNNPredictor(channels, channels, self.num_classes + 1)
        roi_heads.mask_predictor.register_forward_hook(to_float)
        self.mask_threshold = mask_threshold
        self._told = False

    def prepare_targets(self, batch: Sequence[Mapping[str, Any]]) -> list[Target]:
        """As of the base class, with "masks" (N, H, W) where the batch has some.

        Raises:
            ValueError: some images have boxes without masks, others have both; masks are not of
                the size of their image.
        """
        targets = super().prepare_targets(batch)
        with_boxes = [s for s in batch if len(s["instances"])]
        having = [s for s in with_boxes if s["instances"].has("gt_masks")]
        if not having:
            return targets
        if len(having) < len(with_boxes):
            lacking = next(s for s in with_boxes if not s["instances"].has("gt_masks"))
            raise ValueError(
                f"{lacking.get('file_name', 'an image')} has boxes but no gt_masks, other images "
                "of its batch have both"
            )
        first = 0
        for sample, target in zip(batch, targets, strict=True):
            count = len(sample["instances"])
            masks = _masks_of(sample, count).to(self.device, non_blocking=True)
            target["masks"] = masks[target["rows"] - first]
            first += count
        return targets

    def losses(
        self, images: ImageBatch, features: dict[str, Tensor], targets: list[Target]
    ) -> dict[str, Tensor]:
        """Of proposals, boxes, and masks if the targets have some."""
        if "masks" in targets[0]:
            return super().losses(images, features, targets)
        if not self._told:
            self._told = True
            logger.warning("no masks in the data: Mask R-CNN trains its boxes alone")
        with self._without_masks() as branch:
            losses = super().losses(images, features, targets)
        # Nothing, but a part of the graph: processes that train together wait for every gradient.
        losses["loss_mask"] = 0 * sum(p.sum() for part in branch for p in part.parameters())
        return losses

    def detect(self, images: ImageBatch, features: dict[str, Tensor]) -> list[Target]:
        """As of the base class, with "masks" where there is a `mask_threshold`."""
        if self.mask_threshold is not None:
            return super().detect(images, features)
        with self._without_masks():
            return super().detect(images, features)

    def freeze_unused_by_regions(self) -> None:
        """The classifier of regions of interest and the mask branch."""
        super().freeze_unused_by_regions()
        self.network.roi_heads.mask_head.requires_grad_(False)
        self.network.roi_heads.mask_predictor.requires_grad_(False)

    def instances(self, size: tuple[int, int], found: Target) -> Instances:
        """As of the base class, with `pred_masks` (N, H, W) bool."""
        instances = super().instances(size, found)
        if "masks" in found:
            instances.pred_masks = found["masks"][:, 0] >= self.mask_threshold
        return instances

    @contextlib.contextmanager
    def _without_masks(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """torchvision's regions of interest without their mask branch, which is given."""
        roi_heads = self.network.roi_heads
        branch = roi_heads.mask_head, roi_heads.mask_predictor
        roi_heads.mask_head = roi_heads.mask_predictor = None
        try:
            yield branch
        finally:
            roi_heads.mask_head, roi_heads.mask_predictor = branch


def _positive_proposals(
    roi_heads: RoIHeads, proposals: list[Tensor], targets: list[Target], max_regions: int
) -> list[Target]:
    """For each image "boxes" to pool, "matched" boxes, "labels" and "rows" of their instances."""
    boxes = [t["boxes"] for t in targets]
    proposals = roi_heads.add_gt_proposals([p.detach() for p in proposals], boxes)
    matched, labels = roi_heads.assign_targets_to_proposals(
        proposals, boxes, [t["labels"] for t in targets]
    )
    usable = torch.cat(labels) > 0
    drawn = torch.zeros_like(usable)
    drawn[sample_regions(torch.where(usable, 0, -2), max_regions=max_regions)] = True
    chosen = []
    parts = drawn.split([len(p) for p in proposals])
    for kept, image, index, label, target in zip(
        parts, proposals, matched, labels, targets, strict=True
    ):
        index = index[kept]
        chosen.append(
            {
                "boxes": image[kept],
                "matched": target["boxes"][index],
                "labels": label[kept],
                "rows": target["rows"][index],
            }
        )
    return chosen


def _box_loss(roi_heads: RoIHeads, read: Tensor, chosen: list[Target]) -> Tensor:
    """torchvision's loss of the boxes of regions of interest, all of which have an instance."""
    predictor = roi_heads.box_predictor
    regression = predictor.bbox_pred(read).float()
    if not len(read):
        return regression.sum()
    wanted = roi_heads.box_coder.encode(
        [c["matched"] for c in chosen], [c["boxes"] for c in chosen]
    )
    no_logits = regression.new_zeros(len(read), predictor.cls_score.out_features)
    return fastrcnn_loss(no_logits, regression, [c["labels"] for c in chosen], wanted)[1]


def _masks_of(sample: Mapping[str, Any], count: int) -> Tensor:
    """(N, H, W) of an image; an image without boxes need not have any."""
    height, width = sample["image"].shape[-2:]
    if not count:
        return torch.zeros(0, height, width, dtype=torch.uint8)
    masks = sample["instances"].gt_masks.tensor
    if masks.shape != (count, height, width):
        raise ValueError(
            f"{sample.get('file_name', 'an image')}: gt_masks must be {(count, height, width)}, "
            f"the image's size, got {tuple(masks.shape)}"
        )
    return masks.to(torch.uint8)


def _roi_align(backbone: nn.Module, size: int) -> MultiScaleRoIAlign:
    names = [str(level) for level in range(len(backbone.channels))]
    pool = MultiScaleRoIAlign(featmap_names=names, output_size=size, sampling_ratio=2)
    # torchvision guesses the scales from the first batch that it sees and keeps them: wrong ones
    # where the images of this batch are small beside their padding.
    first, last = backbone.strides[0], backbone.strides[-1]
    pool.scales = [1 / stride for stride in backbone.strides]
    pool.map_levels = initLevelMapper(round(math.log2(first)), round(math.log2(last)))
    return pool


def _box_head(
    channels: int, convolutions: int, norm: NormName | None, representation_size: int
) -> nn.Module:
    if not convolutions:
        return TwoMLPHead(channels * _POOLED**2, representation_size)
    return FastRCNNConvFCHead(
        (channels, _POOLED, _POOLED),
        [channels] * convolutions,
        [representation_size],
        norm_layer=None if norm is None else norm_layer(norm),
    )
