"""Boxes are drawn where they are, in the colour of their class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from predet.data.box_store import BoxRow
from predet.data.dataset import DetectionDataset
from predet.visualize import Panel, comparison, contact_sheet, draw_boxes, draw_detections, save_png
from predet.visualize.pictures import class_color

GRAY = np.full((100, 200, 3), 128, np.uint8)
NAMES = ["cat", "dog"]


def panel(*boxes: list[float], classes: list[int], scores: list[float] | None = None) -> Panel:
    found = None if scores is None else np.asarray(scores)
    return Panel("title", np.asarray(boxes, float).reshape(-1, 4), np.asarray(classes), found)


def test_frames_lie_on_the_edges_and_nowhere_else() -> None:
    drawn = draw_boxes(GRAY, panel([20, 30, 80, 90], classes=[1]), class_names=NAMES)
    assert drawn.shape == GRAY.shape
    color = np.asarray(class_color(1))
    for x, y in ((20, 60), (80, 60), (50, 90), (79, 90)):
        np.testing.assert_array_equal(drawn[y, x], color)
    for x, y in ((50, 60), (15, 60), (85, 60), (50, 95), (150, 50)):
        np.testing.assert_array_equal(drawn[y, x], [128, 128, 128])
    assert (GRAY == 128).all()


def test_the_best_box_is_on_top_and_weak_boxes_are_fainter() -> None:
    boxes = ([20, 30, 80, 90], [20, 30, 80, 90], [120, 30, 180, 90])
    drawn = draw_boxes(
        GRAY, panel(*boxes, classes=[1, 0, 1], scores=[0.9, 0.2, 0.1]), class_names=NAMES
    )
    color = np.asarray(class_color(1), int)
    assert np.abs(drawn[60, 20] - color).max() <= 2
    faint = drawn[60, 120].astype(int)
    assert np.abs(faint - color).sum() > np.abs(drawn[60, 20] - color).sum()
    assert np.abs(faint - 128).sum() > 20


def test_boxes_outside_upside_down_and_none_are_no_trouble() -> None:
    wild = panel(
        [-50, -50, 500, 500],
        [80, 90, 20, 30],
        [300, 300, 400, 400],
        [5, 5, 5, 5],
        classes=[0, 1, 0, 1],
        scores=[0.0, 1.5, -1.0, 0.5],
    )
    drawn = draw_boxes(GRAY, wild, class_names=NAMES)
    np.testing.assert_allclose(drawn[60, 20], class_color(1), atol=2)
    nothing = draw_boxes(GRAY, panel(classes=[], scores=[]), class_names=NAMES)
    np.testing.assert_array_equal(nothing, GRAY)


def test_small_images_are_enlarged_with_their_boxes() -> None:
    small = np.full((20, 40, 3), 128, np.uint8)
    sheet = comparison(
        small,
        [panel([10, 5, 30, 15], classes=[0]), panel(classes=[])],
        class_names=NAMES,
        panel_width=400,
    )
    assert sheet.shape[1] == 2 * 400 + 3 * 10
    green = (sheet == np.asarray(class_color(0))).all(axis=2)
    rows, columns = np.nonzero(green)
    assert columns.min() == 10 + 100  # margin, then ten times the box
    assert columns.max() == 10 + 300
    top_of_image = 4 + 22
    assert rows.max() == top_of_image + 10 * 15


def test_a_sheet_holds_all_pictures_and_a_legend() -> None:
    pictures = [np.full((30, 150 + i, 3), i, np.uint8) for i in range(5)]
    sheet = contact_sheet(pictures, columns=2, title="title", class_names=NAMES)
    assert sheet.shape[1] == 152 + 153
    assert sheet.shape[0] == 36 + 28 + 3 * 30
    for i in range(5):
        assert (sheet[36 + 28 + 30 * (i // 2) + 5, 5 + (i % 2) * (150 + i - 1)] == i).all()
    for label in (0, 1):
        assert (sheet[36:64] == np.asarray(class_color(label))).all(axis=2).sum() >= 100
    with pytest.raises(ValueError, match="no pictures"):
        contact_sheet([])


def test_colors_of_many_classes_differ() -> None:
    colors = {class_color(label) for label in range(80)}
    assert len(colors) == 80
    assert all(0 <= value <= 255 for color in colors for value in color)


@pytest.fixture
def dataset(tmp_path: Path) -> DetectionDataset:
    for number in range(3):
        save_png(tmp_path / f"images/{number}.png", GRAY)
    (tmp_path / "images/1.png").write_bytes(b"broken")
    return DetectionDataset(
        name="photos",
        root=str(tmp_path / "images"),
        class_names=["dog", "bird"],
        category_ids=[1, 2],
        keys=["0.png", "1.png", "2.png"],
        image_ids=[0, 1, 2],
        heights=[0, 0, 0],
        widths=[0, 0, 0],
        offsets=[0, 1, 1, 2],
        boxes=[[10, 10, 50, 50], [60, 20, 90, 80]],
        classes=[0, 1],
    )


def test_pages_show_annotations_and_predictions_in_common_colors(
    dataset: DetectionDataset, tmp_path: Path
) -> None:
    rows = {
        "0.png": BoxRow(
            "0.png",
            100,
            200,
            np.asarray([[20.0, 20, 60, 60], [100, 10, 150, 60]]),
            np.asarray([0.3, 0.8]),
            np.asarray([0, 1]),
        )
    }
    path = draw_detections(
        tmp_path / "out/page.png",
        dataset=dataset,
        indices=[0, 1, 2],  # the second cannot be read
        predictions={"teacher": rows},
        class_names=NAMES,
        score_threshold=0.5,
        columns=1,
    )
    page = np.asarray(Image.open(path))
    assert page.shape[1] == 2 * 480 + 3 * 10
    assert page.shape[0] > 2 * 240
    legend = page[:28]
    # cat, dog, bird: the predictions' classes first, then what only the annotations have.
    for label in range(3):
        assert (legend == np.asarray(class_color(label))).all(axis=2).sum() >= 100
    body = page[28:300]
    left, right = body[:, :495], body[:, 495:]
    dog, cat = np.asarray(class_color(1)), np.asarray(class_color(0))
    assert (left == dog).all(axis=2).sum() > 200  # the annotated dog
    assert (np.abs(right.astype(int) - dog) <= 2).all(axis=2).sum() > 200  # the predicted one
    assert not (np.abs(right.astype(int) - cat) <= 2).all(axis=2).any()  # scores too little


def test_a_page_without_images_says_why(dataset: DetectionDataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no image of photos to draw: .*1\.png"):
        draw_detections(
            tmp_path / "page.png",
            dataset=dataset,
            indices=[1],
            predictions={},
            class_names=NAMES,
        )
