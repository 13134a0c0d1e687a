"""EdgeBoxes: boxes that wholly enclose many edges (Zitnick and Dollar, ECCV 2014), by OpenCV.

The paper finds edges with a structured forest. OpenCV has that detector but not its weights; give
their file (`model.yml.gz` of opencv_extra) as `model`. Without it edges are the largest colour
gradients of the smoothed image along their direction, which need no training and are worse.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from predet.data.box_picks import Pick
from predet.data.box_sources import Boxes, without_classes
from predet.data.dataset import DetectionDataset, Record


class EdgeBoxSearch:
    """How boxes are found by edges. All lengths are in pixels of the image as it is searched.

    Args:
        max_side: larger images are shrunk to this; None searches them as they are, which takes
            seconds for photographs.
        max_boxes: the most boxes of an image.
        min_area: least area of a box.
        model: file of OpenCV's structured forest; None for gradients.
        sigma: standard deviation of the smoothing before gradients.

    Raises:
        ValueError: settings that are not possible, or a model that cannot be read.
    """

    method = "edge_boxes"

    def __init__(
        self,
        *,
        max_side: int | None = 400,
        max_boxes: int = 1000,
        min_area: float = 400,
        model: str | None = None,
        sigma: float = 2.0,
    ):
        for name, value in (("max_side", max_side), ("max_boxes", max_boxes)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if min_area < 0 or not sigma > 0:
            raise ValueError(
                f"min_area must be 0 or more and sigma above 0, got {min_area} and {sigma}"
            )
        self.max_side, self.max_boxes, self.min_area = max_side, max_boxes, min_area
        self.model, self.sigma = model, sigma
        self._forest = None if model is None else _read_forest(model)

    @property
    def parameters(self) -> dict[str, Any]:
        """All that changes the boxes, in types of JSON."""
        return {
            "max_side": self.max_side,
            "max_boxes": self.max_boxes,
            "min_area": self.min_area,
            "edges": "gradients" if self.model is None else Path(self.model).name,
            "sigma": self.sigma if self.model is None else None,
        }

    def boxes(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the boxes of an image.

        Args:
            image: (H, W, 3) uint8 RGB.

        Returns:
            (N, 4) float32 absolute xyxy in the frame of `image` and (N,) float32 scores, best
            first.
        """
        small = self._resized(image)
        edges, orientation = self._edges(small)
        if not edges.any():
            return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        search = cv2.ximgproc.createEdgeBoxes(maxBoxes=self.max_boxes, minBoxArea=self.min_area)
        found, scores = search.getBoundingBoxes(edges, orientation)
        boxes = np.asarray(found, np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        size = np.float32(small.shape[1::-1])
        boxes = np.clip(boxes, 0, np.tile(size, 2)) * np.tile(image.shape[1::-1] / size, 2)
        scores = np.asarray(scores, np.float32).reshape(-1)
        kept = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
        kept = kept[np.argsort(-scores[kept], kind="stable")]
        return boxes[kept].astype(np.float32), scores[kept]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_forest": None}  # OpenCV's objects cannot be pickled

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.model is not None:
            self._forest = _read_forest(self.model)

    def _resized(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        if self.max_side is None or max(height, width) <= self.max_side:
            return image
        scale = self.max_side / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA)

    def _edges(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Strength (h, w) float32 in [0, 1], thinned, and direction across the edge in [0, pi)."""
        colors = image.astype(np.float32) / 255
        if self._forest is None:
            return gradient_edges(cv2.GaussianBlur(colors, (0, 0), self.sigma))
        edges = self._forest.detectEdges(colors)
        orientation = self._forest.computeOrientation(edges)
        return self._forest.edgesNms(edges, orientation), orientation


class EdgeBoxes:
    """EdgeBoxes as a source of pre-training boxes, found when the image is read; classes are all 0.

    Args:
        search: how.
        pick: which of the boxes are taken, best score first.
    """

    def __init__(self, *, search: EdgeBoxSearch, pick: Pick):
        self.search, self.pick = search, pick

    @property
    def num_boxes(self) -> int:
        return self.pick.k

    def check(self, dataset: DetectionDataset) -> None:
        """Any images will do."""

    def __call__(self, image: np.ndarray, record: Record, rng: np.random.Generator) -> Boxes:
        boxes, _ = self.search.boxes(image)
        return without_classes(boxes[self.pick(len(boxes), rng)])


def gradient_edges(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges of an image by its gradients.

    Args:
        image: (H, W, 3) float32, smoothed.

    Returns:
        (H, W) float32 strength in [0, 1]: that of the colour that changes most, 0 where it is
        larger one pixel further across the edge, 1 from the 99.9th percentile of the rest on; and
        (H, W) float32 direction of the change in [0, pi), with y pointing down.
    """
    change = np.stack([cv2.Scharr(image, cv2.CV_32F, 1, 0), cv2.Scharr(image, cv2.CV_32F, 0, 1)])
    strongest = np.square(change).sum(axis=0).argmax(axis=2)[..., None]
    dx, dy = (np.take_along_axis(one, strongest, axis=2)[..., 0] for one in change)
    strength, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
    across, down = np.cos(angle), np.sin(angle)
    beside = [
        cv2.remap(strength, columns + sign * across, rows + sign * down, cv2.INTER_LINEAR)
        for sign in (-1, 1)
    ]
    # Nothing of rounding: flat parts of an image have no edges.
    thin = np.where((strength >= np.maximum(*beside)) & (strength > 1e-4), strength, 0)
    if thin.any():
        thin = np.minimum(thin / np.percentile(thin[thin > 0], 99.9), 1)
    direction = np.mod(angle, np.pi).astype(np.float32)
    direction[direction >= np.float32(np.pi)] = 0  # rounding
    return thin.astype(np.float32), direction


def _read_forest(path: str) -> Any:
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}: expected OpenCV's structured forest")
    try:
        # OpenCV's reader of forests divides by this number without a look at it.
        storage = cv2.FileStorage()
        storage.open(path, cv2.FILE_STORAGE_READ)
        options = storage.getNode("options")
        if options.empty() or not options.getNode("numberOfTrees").real() >= 1:
            raise ValueError(f"{path} holds no structured forest: expected options.numberOfTrees")
        return cv2.ximgproc.createStructuredEdgeDetection(path)
    except cv2.error as error:
        raise ValueError(f"{path} is not the structured forest of OpenCV: {error.err}") from error
