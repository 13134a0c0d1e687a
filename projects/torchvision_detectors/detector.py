"""What torchvision's detectors share here: predet's batch contract, a backbone, a pyramid.

The detectors are `torchvision.models.detection`'s own, without their backbones and without their
resizing, which is the data's work here. Losses and detections are torchvision's. Deviations:

- classes are contiguous from 0 everywhere; the background of two-stage detectors is added inside;
- boxes and scores are computed in fp32 under autocast too: torchvision takes anchors in the dtype
  of the maps, and bf16 has three digits for a coordinate;
- boxes without an area, on which torchvision stops, are no targets.

Losses are normalised as torchvision does, by image or by micro-batch, not by the whole optimiser
step: docs/decisions/0022.

Legend: B images, C channels of the pyramid, N boxes of an image.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork, clip_boxes_to_image
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from predet.d2 import Boxes, Instances
from predet.layers.norm import NormName, norm_layer
from predet.modeling.images import ImageBatch, ImageNormalizer
from predet.modeling.postprocess import original_sizes
from predet.modeling.regions import Regions
from predet.modeling.targets import checked_instances

Target = dict[str, Tensor]


class TorchvisionDetector(nn.Module):
    """A meta-architecture: losses of a batch in training, detections of it otherwise.

    Args:
        backbone: maps (B, 3, H, W) to a tuple of feature maps; has `channels` and `strides`.
        neck: torchvision's feature pyramid on these maps.
        network: torchvision's detector for the maps of the pyramid; its own backbone is not used.
        num_classes: contiguous classes, without background.
        pixel_mean, pixel_std: of RGB in 0..255.
        size_divisibility: padded images have multiples of this as height and width.
    """

    first_label = 0  # torchvision's number of class 0
    # Dotted names of what depends on the number of classes, and of the layers that predict: all
    # that a pre-training without these classes, or of other tasks, cannot give.
    class_layers: tuple[str, ...]
    last_layers: tuple[str, ...]
    # Of `regions`: channels of a feature, and how many predictions are made from one.
    region_channels: int
    region_slots: int = 1

    def __init__(
        self,
        *,
        backbone: nn.Module,
        neck: FeaturePyramidNetwork,
        network: nn.Module,
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.backbone = backbone
        self.neck = neck
        self.network = network
        self.normalizer = ImageNormalizer(
            pixel_mean=pixel_mean, pixel_std=pixel_std, size_divisibility=size_divisibility
        )
        # Takes the detector as an argument, so that a copy of a detector runs on its own weights.
        self._compiled: Callable[..., dict[str, Tensor]] | None = None

    @property
    def device(self) -> torch.device:
        """Where the images go."""
        return self.normalizer.pixel_mean.device

    def forward(
        self, batch: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Train on a batch, or detect in it: contract of `predet.modeling.detector.Detector`.

        Raises:
            ValueError: an image to train on has no instances, a class that the detector does not
                have, or a box that is not finite.
        """
        images = self.preprocess(batch)
        if not self.training:
            detections = self.detect(images, self.features(images))
            return self.postprocess(detections, images, original_sizes(batch))
        targets = self.prepare_targets(batch)
        return self.losses(images, self.features(images), targets)

    def preprocess(self, batch: Sequence[Mapping[str, Any]]) -> ImageBatch:
        """Move, normalise and pad the images."""
        return self.normalizer([sample["image"] for sample in batch])

    def prepare_targets(self, batch: Sequence[Mapping[str, Any]]) -> list[Target]:
        """torchvision's targets: "boxes" (N, 4) xyxy, "labels" (N,); and "rows" (N,) int64, where
        they stand among the instances of all images of the batch."""
        targets, first = [], 0
        for _, classes, boxes in checked_instances(batch, self.num_classes):
            kept = torch.nonzero((boxes[:, 2:] > boxes[:, :2]).all(dim=1)).flatten()
            target = {
                "boxes": boxes[kept],
                "labels": classes[kept] + self.first_label,
                "rows": kept + first,
            }
            targets.append({k: v.to(self.device, non_blocking=True) for k, v in target.items()})
            first += len(boxes)
        return targets

    def features(self, images: ImageBatch) -> dict[str, Tensor]:
        """Maps of the pyramid by torchvision's names, finest first."""
        encode = self._compiled or type(self).encode
        return encode(self, images.pixels)

    def encode(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> the pyramid; a function of nothing but its argument."""
        maps = self.backbone(pixels)
        pyramid = self.neck(OrderedDict((str(index), m) for index, m in enumerate(maps)))
        # In fp32, so that anchors and proposals are; convolutions under autocast take them as bf16.
        return OrderedDict((name, m.float()) for name, m in pyramid.items())

    def compile(self, **options: Any) -> None:
        """Compile `encode`: what follows depends on how many boxes there are.

        Args:
            options: of `torch.compile`.
        """
        self._compiled = torch.compile(type(self).encode, **options)

    def losses(
        self, images: ImageBatch, features: dict[str, Tensor], targets: list[Target]
    ) -> dict[str, Tensor]:
        """torchvision's losses."""
        raise NotImplementedError

    def detect(self, images: ImageBatch, features: dict[str, Tensor]) -> list[Target]:
        """torchvision's "boxes", "scores" and "labels" in the frame of the resized images."""
        raise NotImplementedError

    def regions(self, batch: Sequence[Mapping[str, Any]], *, max_regions: int) -> Regions:
        """Predictions with the instances that torchvision's assignment gives them.

        The detector must be in training mode. Where there are more, they are drawn from torch's
        generator.

        Args:
            batch: as in training.
            max_regions: of all images together.
        """
        raise NotImplementedError

    def freeze_unused_by_regions(self) -> None:
        """Take the parameters that `regions` does not train out of training."""
        raise NotImplementedError

    def postprocess(
        self, detections: list[Target], images: ImageBatch, sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Instances]]:
        """Detections in images of the given original (height, width), best first."""
        detections = self.network.transform.postprocess(detections, list(images.sizes), list(sizes))
        return [
            {"instances": self.instances(size, found)}
            for size, found in zip(sizes, detections, strict=True)
        ]

    def instances(self, size: tuple[int, int], found: Target) -> Instances:
        """Detections of one original image as predet and Detectron2 have them."""
        return Instances(
            size,
            # Scaling can push a box over the border by rounding.
            pred_boxes=Boxes(clip_boxes_to_image(found["boxes"], size)),
            scores=found["scores"],
            pred_classes=found["labels"] - self.first_label,
        )

    def label(self, batch: Sequence[Mapping[str, Any]]) -> list[Instances]:
        """The detections: what pseudo-labels start from."""
        images = self.preprocess(batch)
        detections = self.detect(images, self.features(images))
        found = self.postprocess(detections, images, original_sizes(batch))
        return [output["instances"] for output in found]


class NoBackbone(nn.Module):
    """Stands where torchvision's constructors expect the backbone: the pyramid comes from outside.

    Args:
        out_channels: of the pyramid.
    """

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels


def build_neck(
    backbone: nn.Module,
    *,
    channels: int,
    norm: NormName | None,
    extra_blocks: ExtraFPNBlock,
) -> FeaturePyramidNetwork:
    """torchvision's pyramid on a backbone's maps."""
    return FeaturePyramidNetwork(
        in_channels_list=list(backbone.channels),
        out_channels=channels,
        extra_blocks=extra_blocks,
        norm_layer=None if norm is None else norm_layer(norm),
    )


def pyramid_strides(backbone: nn.Module, extra: int) -> list[int]:
    """Strides of the backbone's maps and of `extra` coarser ones.

    Raises:
        ValueError: the stride does not double from each map to the next.
    """
    strides = list(backbone.strides)
    if any(coarse != 2 * fine for fine, coarse in itertools.pairwise(strides)):
        raise ValueError(
            f"a feature pyramid needs maps whose strides double, got {tuple(strides)}; set the "
            "backbone's out_stages"
        )
    return strides + [strides[-1] * 2 ** (k + 1) for k in range(extra)]


def as_image_list(images: ImageBatch) -> ImageList:
    """torchvision's batch of images."""
    return ImageList(images.pixels, list(images.sizes))


def to_float(_module: nn.Module, _arguments: Any, output: Any) -> Any:
    """A forward hook: outputs of a head in fp32, also under autocast."""
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, dict):
        return {name: value.float() for name, value in output.items()}
    return type(output)(to_float(_module, _arguments, part) for part in output)
