"""What a module says about its feature maps. Contract: `detectron2.layers.ShapeSpec`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """Shape of a feature map; None where it is unknown or varies.

    `stride` is in pixels of the image per cell of the map.
    """

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
