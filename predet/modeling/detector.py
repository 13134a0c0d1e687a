"""What all detectors of the DETR family share: the batch contract around `detect`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from predet.d2 import Instances
from predet.layers.mlp import MLP
from predet.modeling.criterion import SetCriterion
from predet.modeling.images import PIXEL_MEAN, PIXEL_STD, ImageBatch, ImageNormalizer
from predet.modeling.outputs import DetectorOutput, Queries
from predet.modeling.postprocess import best_per_query, original_sizes
from predet.modeling.regions import Regions
from predet.modeling.set_regions import set_regions
from predet.modeling.targets import Targets, prepare_targets

Condition = Callable[[Queries], Queries]


class Detector(nn.Module):
    """A meta-architecture: losses of a batch in training, detections of it otherwise.

    A subclass has `transformer`, `class_head` and `box_head`, and says how it gets from feature
    maps to raw predictions and from these to detections.

    Args:
        backbone: maps (B, 3, H, W) to a tuple of feature maps; has `channels` and `strides`.
        criterion: weighted losses of a `DetectorOutput` and `Targets`.
        num_classes: contiguous classes, without "no object".
        pixel_mean: RGB means in 0..255.
        pixel_std: RGB standard deviations in 0..255.
        size_divisibility: padded images have multiples of this as height and width.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        criterion: SetCriterion,
        num_classes: int,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        size_divisibility: int = 1,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.backbone = backbone
        self.criterion = criterion
        self.normalizer = ImageNormalizer(
            pixel_mean=pixel_mean, pixel_std=pixel_std, size_divisibility=size_divisibility
        )
        # Takes the detector as an argument, so that a copy of a detector runs on its own weights.
        self._compiled: Callable[..., DetectorOutput] | None = None

    @property
    def device(self) -> torch.device:
        """Where the images go."""
        return self.normalizer.pixel_mean.device

    def forward(
        self, batch: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Train on a batch, or detect in it.

        Args:
            batch: one dict an image: "image" (3, H, W) RGB uint8; in training "instances" with
                `gt_boxes` (absolute xyxy in the frame of "image") and `gt_classes`; otherwise
                "height" and "width" of the original image, if it is not of the size of "image".

        Returns:
            In training weighted losses, to be summed. Otherwise one dict an image with
            "instances": `pred_boxes` in the frame of the original image, `scores`,
            `pred_classes`.
        """
        images = self.preprocess(batch)
        if not self.training:
            return self.postprocess(self.detect(images), original_sizes(batch))
        targets = self.prepare_targets(batch)
        return self.criterion(self.detect(images), targets)

    def preprocess(self, batch: Sequence[Mapping[str, Any]]) -> ImageBatch:
        """Move, normalise and pad the images."""
        return self.normalizer([sample["image"] for sample in batch])

    def prepare_targets(self, batch: Sequence[Mapping[str, Any]]) -> Targets:
        """Targets of the batch's "instances" on the model's device."""
        return prepare_targets(batch, self.num_classes, self.device)

    def detect(self, images: ImageBatch, condition: Condition | None = None) -> DetectorOutput:
        """Raw predictions of every layer.

        Args:
            images: as `preprocess` gives them.
            condition: changes the queries before the decoder sees them: the seam for
                pre-training on patches, masked groups and the like.
        """
        predict = self._compiled or type(self).predict
        return predict(self, images.pixels, images.pad_mask, condition)

    def predict(
        self, pixels: Tensor, pad_mask: Tensor, condition: Condition | None = None
    ) -> DetectorOutput:
        """`detect` from bare tensors: a function of nothing but their values and shapes."""
        maps = self.project(self.backbone(pixels))
        return self.transform(maps, pad_mask, condition)

    def compile(self, **options: Any) -> None:
        """Compile `predict`, the model up to its raw predictions, in training and evaluation.

        What depends on how many objects an image has (targets, matching, losses) or reads results
        back (post-processing) is no work for a compiler and stays outside.

        Args:
            options: of `torch.compile`.
        """
        self._compiled = torch.compile(type(self).predict, **options)

    def project(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Feature maps of the backbone -> maps of the transformer's width."""
        raise NotImplementedError

    def transform(
        self, maps: Sequence[Tensor], pad_mask: Tensor, condition: Condition | None = None
    ) -> DetectorOutput:
        """Raw predictions of every layer from projected maps.

        What `maps` hold where `pad_mask` (B, H, W), of the images, is True does not matter.
        """
        raise NotImplementedError

    def postprocess(
        self, output: DetectorOutput, sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Instances]]:
        """Detections in images of the given original (height, width)."""
        raise NotImplementedError

    def regions(
        self, batch: Sequence[Mapping[str, Any]], *, max_regions: int | None = None
    ) -> Regions:
        """The losses of a batch, and the queries of all layers with what they are matched to.

        Args:
            batch: as in training.
            max_regions: the most queries, matched ones first; None takes all.
        """
        images, targets = self.preprocess(batch), self.prepare_targets(batch)
        output = self.detect(images)
        matches = self.criterion.match(output, targets)
        losses = self.criterion(output, targets, matches)
        return set_regions(output, matches, losses, max_regions=max_regions)

    @property
    def region_channels(self) -> int:
        """Channels of the features of `regions`."""
        return self.transformer.hidden_dim

    @property
    def region_slots(self) -> int:
        """Predictions that are made from one feature of `regions`."""
        return 1

    def freeze_unused_by_regions(self) -> None:
        """Stop training what `regions` has no losses for: nothing here."""

    @property
    def last_layers(self) -> tuple[str, ...]:
        """Names of the layers that predict classes and coordinates: see `train.reinit`."""
        ends = [
            ".".join(filter(None, ["box_head", name, f"layers.{len(part.layers) - 1}"]))
            for name, part in self.box_head.named_modules()
            if isinstance(part, MLP)
        ]
        return ("class_head", *ends)

    def label(self, batch: Sequence[Mapping[str, Any]]) -> list[Instances]:
        """One detection a query, its best class, unsorted: what pseudo-labels start from."""
        output = self.detect(self.preprocess(batch))
        return best_per_query(output, original_sizes(batch), self.criterion.classification)
