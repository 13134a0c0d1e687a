"""Self-supervised pre-training of a backbone on one's own images: what all methods share.

Several random views of each image go through the backbone, and a method compares them. What
survives is `backbone`: a detector takes it by `model.backbone.weights`, or out of
`train.init_checkpoint` by `train.reinit=[all-but-backbone]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from predet.modeling.images import PIXEL_MEAN, PIXEL_STD, ImageNormalizer
from predet.projects.image_domain.collapse import CollapseWatch
from predet.projects.image_domain.views import EncodedView, pool


class ImageDomain(nn.Module):
    """A meta-architecture: losses of a batch of views in training, pooled features otherwise.

    A subclass has the heads of its method and says in `compare` what the losses are.

    Args:
        backbone: maps (B, 3, H, W) to a tuple of feature maps; has `channels` and `strides`.
            Trained whole.
        pixel_mean: RGB means in 0..255; those of the detector that will take the backbone.
        pixel_std: RGB standard deviations in 0..255.
        check_period: forward passes between two looks at whether the features have collapsed.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        check_period: int = 50,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.normalizer = ImageNormalizer(pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.watch = CollapseWatch(period=check_period)

    @property
    def device(self) -> torch.device:
        """Where the images go."""
        return self.normalizer.pixel_mean.device

    def forward(
        self, batch: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Train on views, or encode images.

        Args:
            batch: one dict an image. In training "views", as `MultiViewMapper` makes them, the
                same number and sizes for all images; otherwise "image" (3, H, W) RGB uint8.

        Returns:
            In training weighted losses, to be summed. Otherwise one dict an image with
            "features" (D,), the means of all feature maps, one after the other.

        Raises:
            ValueError: an image has no views, or other ones than the first image.
        """
        if not self.training:
            return [{"features": row} for row in self.encode([s["image"] for s in batch])]
        views = self.encode_views(batch)
        self.watch(pool(views[0].maps))
        return self.compare(views)

    def compare(self, views: Sequence[EncodedView]) -> dict[str, Tensor]:
        """Weighted losses of the views of a batch."""
        raise NotImplementedError

    def encode(self, images: Sequence[Tensor]) -> Tensor:
        """(3, H, W) RGB in 0..255 each, all of one size -> (B, D) means of all feature maps."""
        return pool(self.backbone(self.normalizer(images).pixels))

    def encode_views(self, batch: Sequence[Mapping[str, Any]]) -> list[EncodedView]:
        """Feature maps of every view of a batch; views of one size share a pass."""
        sizes = _view_sizes(batch)
        encoded: dict[int, EncodedView] = {}
        for size in dict.fromkeys(sizes):
            places = [place for place, other in enumerate(sizes) if other == size]
            images = [sample["views"][place]["image"] for place in places for sample in batch]
            maps = self.backbone(self.normalizer(images).pixels)
            parts = zip(*(m.chunk(len(places)) for m in maps), strict=True)
            for place, part in zip(places, parts, strict=True):
                to_view = torch.stack([sample["views"][place]["to_view"] for sample in batch])
                encoded[place] = EncodedView(part, to_view.float().to(self.device), size)
        return [encoded[place] for place in range(len(sizes))]


def _view_sizes(batch: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Height and width of each view, the same for all images."""
    found: list[list[tuple[int, int]]] = []
    for sample in batch:
        if "views" not in sample:
            raise ValueError(
                f"image-domain pre-training needs views, but a sample has only {sorted(sample)}: "
                "use MultiViewMapper"
            )
        found.append([tuple(view["image"].shape[1:]) for view in sample["views"]])
        if found[-1] != found[0]:
            raise ValueError(
                "all images of a batch must have views of the same sizes, got "
                f"{found[0]} and {found[-1]}"
            )
    return found[0]
