"""One change of colours or sharpness, drawn from nine: what AlignDet does to each of its views.

The changes and their strengths are those of its code (arXiv 2307.11077), which are Soft Teacher's
weak ones. The arithmetic is Pillow's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

STRENGTHS = range(1, 10)  # one of them is drawn for each image


def _factor(strength: int) -> float:
    """Of an enhancement: 0.28 to 1.72, 1 changes nothing."""
    return 0.1 + 1.8 * strength / 10


# Image and strength -> image. Where the strength has no meaning it is not looked at.
CHANGES: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "identity": lambda image, strength: image,
    "autocontrast": lambda image, strength: ImageOps.autocontrast(image),
    "equalize": lambda image, strength: ImageOps.equalize(image),
    "solarize": lambda image, strength: ImageOps.solarize(image, int(25.6 * strength)),
    "color": lambda image, strength: ImageEnhance.Color(image).enhance(_factor(strength)),
    "contrast": lambda image, strength: ImageEnhance.Contrast(image).enhance(_factor(strength)),
    "brightness": lambda image, strength: ImageEnhance.Brightness(image).enhance(_factor(strength)),
    "sharpness": lambda image, strength: ImageEnhance.Sharpness(image).enhance(_factor(strength)),
    "posterize": lambda image, strength: ImageOps.posterize(image, 4 - int(0.4 * strength)),
}


class OneChange:
    """Change an image by one of `changes`, each as likely, with a strength drawn from 1 to 9.

    Args:
        changes: names out of `CHANGES`.
    """

    def __init__(self, *, changes: Sequence[str] = tuple(CHANGES)):
        unknown = [name for name in changes if name not in CHANGES]
        if unknown or not changes:
            raise ValueError(
                f"changes must be one or more of {', '.join(CHANGES)}, got {list(changes)}"
            )
        self.changes = tuple(changes)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> the same size; `image` is not written to."""
        change = CHANGES[self.changes[rng.integers(len(self.changes))]]
        strength = int(rng.integers(STRENGTHS.start, STRENGTHS.stop))
        return np.asarray(change(Image.fromarray(image), strength))
