"""EdgeBoxes: edges and their direction against OpenCV's own, objects that are found, bad files."""

from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from predet.data.augmentation import Compose
from predet.data.box_picks import TopK
from predet.data.edge_boxes import EdgeBoxes, EdgeBoxSearch, gradient_edges
from predet.data.formats import load_dataset
from predet.data.pretext_mapper import PretextMapper
from predet.evaluation.overlap import iou

OPTIONS = {
    "stride": 2,
    "shrinkNumber": 2,
    "patchSize": 32,
    "patchInnerSize": 16,
    "numberOfGradientOrientations": 4,
    "gradientSmoothingRadius": 0,
    "regFeatureSmoothingRadius": 2,
    "ssFeatureSmoothingRadius": 8,
    "gradientNormalizationRadius": 4,
    "selfsimilarityGridSize": 5,
    "numberOfTrees": 1,
    "numberOfTreesToEvaluate": 1,
}


@pytest.fixture
def stump(tmp_path: Path) -> str:
    """A structured forest of one tree with one question: is there a gradient in the middle?

    Feature 8 * 16 + 8 + 3 * 256 is the strength of the gradient at the middle of a patch; the
    second leaf draws the middle four pixels of its 16 x 16, in all 13 channels.
    """
    middle = [256 * z + 16 * y + x for z in range(13) for y in (7, 8) for x in (7, 8)]
    lists = {
        "childs": [2, 0, 0],
        "featureIds": [3 * 256 + 8 * 16 + 8, 0, 0],
        "thresholds": [0.02, 0.0, 0.0],
        "edgeBoundaries": [0, 0, 0, len(middle)],
        "edgeBins": middle,
    }
    lines = ["%YAML:1.0", "---", "options:"]
    lines += [f"   {name}: {value}" for name, value in OPTIONS.items()]
    lines += [f"{name}:\n   - {values}" for name, values in lists.items()]
    path = tmp_path / "model.yml"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def scene(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three filled shapes on a soft ground, and their boxes."""
    rng = np.random.default_rng(seed)
    image = cv2.GaussianBlur(rng.integers(90, 130, (200, 260, 3)).astype(np.uint8), (0, 0), 4)
    boxes = np.float32([[20, 30, 80, 110], [120, 20, 220, 80], [140, 110, 230, 180]])
    for (x1, y1, x2, y2), color in zip(
        boxes.astype(int).tolist(), [(220, 40, 40), (30, 200, 60), (240, 240, 60)], strict=True
    ):
        center, axes = ((x1 + x2) // 2, (y1 + y2) // 2), ((x2 - x1) // 2, (y2 - y1) // 2)
        cv2.ellipse(image, center, axes, 0, 0, 360, color, -1)
    return image, boxes


def step_edge(angle: float) -> np.ndarray:
    """Dark to light across a line through the middle; `angle` is the direction of the change."""
    y, x = np.mgrid[:61, :61] - 30.0
    along = np.cos(angle) * x + np.sin(angle) * y
    return np.repeat((1 / (1 + np.exp(-along)))[..., None], 3, axis=2).astype(np.float32)


@pytest.mark.parametrize("degrees", [0, 30, 45, 80, 90, 100, 135, 150, 179])
def test_gradients_are_thin_and_point_across(degrees):
    strength, direction = gradient_edges(step_edge(np.radians(degrees)))
    inner = strength[8:-8, 8:-8]
    assert inner.max() > 0.9
    on = inner > 0.5
    assert 40 <= on.sum() <= 130  # a line of 45 to 64 pixels, two wide at most
    y, x = np.nonzero(on)
    distance = np.cos(np.radians(degrees)) * (x - 22) + np.sin(np.radians(degrees)) * (y - 22)
    assert abs(distance).max() < 1.1
    turned = np.degrees(direction[8:-8, 8:-8][on]) - degrees
    assert abs((turned + 90) % 180 - 90).max() < 3
    assert ((direction >= 0) & (direction < np.pi)).all()


@pytest.mark.parametrize("degrees", [0, 45, 80, 100, 135])
def test_direction_is_measured_as_opencv_does(degrees, stump):
    """Of the same edge, where OpenCV computes it from a drawn edge map."""
    strength, direction = gradient_edges(step_edge(np.radians(degrees)))
    forest = cv2.ximgproc.createStructuredEdgeDetection(stump)
    theirs = forest.computeOrientation(strength)
    on = np.zeros_like(strength, bool)
    on[15:-15, 15:-15] = strength[15:-15, 15:-15] > 0.8
    difference = np.degrees(direction - theirs)[on]
    assert abs((difference + 90) % 180 - 90).max() < 15


@pytest.mark.parametrize("forest", [False, True])
def test_objects_are_among_the_first_boxes(forest, stump):
    image, objects = scene()
    search = pickle.loads(pickle.dumps(EdgeBoxSearch(model=stump if forest else None)))
    boxes, scores = search.boxes(image)
    assert (boxes.dtype, scores.dtype) == (np.float32, np.float32)
    assert (np.diff(scores) <= 0).all()
    assert (boxes >= 0).all()
    assert (boxes <= [260, 200, 260, 200]).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    best = iou(objects, boxes[:10])
    assert (best.max(axis=1) > (0.6 if forest else 0.7)).all()  # the stump's edges are blunt


def test_boxes_come_back_in_the_frame_of_the_image():
    """An image of twice the size has twice the boxes, as what is searched has one size."""
    image, objects = scene()
    small = EdgeBoxSearch(max_side=260).boxes(image)[0]
    large = cv2.resize(image, (520, 400), interpolation=cv2.INTER_NEAREST)
    found = EdgeBoxSearch(max_side=260).boxes(large)[0]
    np.testing.assert_allclose(found, 2 * small, atol=1e-4)
    assert (iou(2 * objects, found[:10]).max(axis=1) > 0.7).all()


@pytest.mark.parametrize("shape", [(1, 1), (3, 400), (50, 60)])
def test_an_image_without_edges_has_no_boxes(shape):
    boxes, scores = EdgeBoxSearch().boxes(np.full((*shape, 3), 90, np.uint8))
    assert boxes.shape == (0, 4)
    assert scores.shape == (0,)


def test_as_a_source_it_counts_what_is_missing(image_folder):
    record = load_dataset(image_folder)[0]
    mapper = PretextMapper(
        augmentation=Compose(steps=[]),
        boxes=EdgeBoxes(search=EdgeBoxSearch(min_area=20), pick=TopK(2000)),
    )
    item = pickle.loads(pickle.dumps(mapper))(record, np.random.default_rng(0))
    count = len(item["instances"])
    assert 0 < count < 2000
    assert item["boxes_missing"] == 2000 - count
    assert not item["instances"].gt_classes.any()
    again = mapper(record, np.random.default_rng(1))
    assert again["instances"].gt_boxes.tensor.equal(item["instances"].gt_boxes.tensor)


def test_parameters_tell_what_changes_the_boxes(stump):
    assert EdgeBoxSearch().parameters["edges"] == "gradients"
    assert EdgeBoxSearch(model=stump).parameters["edges"] == "model.yml"
    assert EdgeBoxSearch(sigma=1.0).parameters != EdgeBoxSearch().parameters


@pytest.mark.parametrize("content", ["nothing", "%YAML:1.0\n---\na: 1\n", None])
def test_files_that_are_no_forest_are_named(tmp_path, content):
    path = tmp_path / "model.yml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"model\.yml"):
        EdgeBoxSearch(model=str(path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_side": 0}, "max_side must be at least 1, got 0"),
        ({"max_boxes": 0}, "max_boxes must be at least 1, got 0"),
        ({"min_area": -1}, "min_area must be 0 or more .* got -1"),
        ({"sigma": 0}, "sigma above 0, got 400 and 0"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        EdgeBoxSearch(**options)
