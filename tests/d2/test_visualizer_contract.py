"""Pictures: what matters is what is drawn where, not how it looks."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

REFUSED = (ValueError, AssertionError)  # the embedded side, Detectron2


def changed(picture: np.ndarray, before: int) -> np.ndarray:
    """(H, W) where a picture that was of one grey is not any more."""
    return (np.abs(picture.astype(int) - before) > 8).any(2)


@pytest.fixture
def grey() -> np.ndarray:
    return np.full((120, 160, 3), 100, np.uint8)


def test_draw_box_marks_the_outline_only(d2, grey) -> None:
    visualizer = d2.Visualizer(grey)
    output = visualizer.draw_box((40, 30, 100, 90), edge_color=(1.0, 0.0, 0.0), alpha=1.0)
    picture = output.get_image()
    assert picture.shape == grey.shape
    assert picture.dtype == np.uint8
    mask = changed(picture, 100)
    for x, y in ((40, 60), (100, 60), (70, 30), (70, 90)):
        assert mask[y - 2 : y + 2, x - 2 : x + 2].any(), (x, y)
        assert (picture[y - 2 : y + 2, x - 2 : x + 2, 0] > 200).any(), "the colour is red"
    assert not mask[45:75, 55:85].any()
    assert not mask[:20].any()
    assert not mask[:, 110:].any()
    assert grey.min() == grey.max() == 100


def test_colour_names(d2, grey) -> None:
    picture = d2.Visualizer(grey).draw_box((40, 30, 100, 90), edge_color="b").get_image()
    red, green, blue = picture[60, 38:43].astype(int).max(0)
    assert blue > 150
    assert max(red, green) <= 110


def test_draw_text_is_near_its_place(d2, grey) -> None:
    picture = d2.Visualizer(grey).draw_text("label", (80, 60), font_size=12).get_image()
    rows, columns = changed(picture, 100).nonzero()
    assert len(rows) > 20
    assert rows.min() >= 55
    assert rows.max() <= 90
    assert abs((columns.min() + columns.max()) / 2 - 80) < 4


@pytest.mark.parametrize(
    ("scale", "size"), [(2.0, (240, 320)), (0.5, (60, 80)), (1.01, (121, 161))]
)
def test_scale_enlarges_the_picture_not_the_frame(d2, grey, scale, size) -> None:
    visualizer = d2.Visualizer(grey, scale=scale)
    picture = visualizer.draw_box((40, 30, 100, 90), alpha=1.0).get_image()
    assert picture.shape == (*size, 3)
    rows, columns = changed(picture, 100).nonzero()
    assert abs(columns.min() / scale - 40) < 5
    assert abs(rows.max() / scale - 90) < 5


def test_draw_instance_predictions(d2, grey) -> None:
    metadata = SimpleNamespace(
        thing_classes=["cat", "dog"],
        get=lambda key, default=None: ["cat", "dog"] if key == "thing_classes" else default,
    )
    predictions = d2.Instances(
        (120, 160),
        pred_boxes=d2.Boxes([[10.0, 10.0, 60.0, 60.0], [80.0, 50.0, 150.0, 110.0]]),
        scores=torch.tensor([0.9, 0.25]),
        pred_classes=torch.tensor([1, 0]),
    )
    mask = changed(
        d2.Visualizer(grey, metadata).draw_instance_predictions(predictions).get_image(), 100
    )
    for x, y in ((60, 50), (150, 80), (115, 110), (35, 10)):
        assert mask[y - 3 : y + 3, x - 3 : x + 3].any(), (x, y)
    empty = d2.Visualizer(grey, metadata).draw_instance_predictions(predictions[:0]).get_image()
    assert not changed(empty, 100).any()


def test_draw_dataset_dict_reads_the_box_mode(d2, grey) -> None:
    annotations = [
        {
            "bbox": [40, 30, 60, 60],
            "bbox_mode": d2.BoxMode.XYWH_ABS,
            "category_id": 0,
            "iscrowd": 1,
        },
        {"bbox": [10, 10, 25, 25], "bbox_mode": d2.BoxMode.XYXY_ABS, "category_id": 3},
    ]
    picture = d2.Visualizer(grey).draw_dataset_dict({"annotations": annotations}).get_image()
    mask = changed(picture, 100)
    assert mask[58:62, 98:103].any()
    assert not mask[:, 110:].any()
    assert not changed(d2.Visualizer(grey).draw_dataset_dict({}).get_image(), 100).any()


def test_overlay_instances(d2, grey) -> None:
    boxes = np.array([[40.0, 30.0, 100.0, 90.0]])
    output = d2.Visualizer(grey).overlay_instances(
        boxes=boxes, labels=["a"], assigned_colors=["r"], alpha=1.0
    )
    assert (output.get_image()[55:75, 98:103, 0] > 150).any()
    with pytest.raises(REFUSED):
        d2.Visualizer(grey).overlay_instances(boxes=boxes, labels=["a", "b"])
    none = d2.Visualizer(grey).overlay_instances(boxes=np.zeros((0, 4)), labels=[])
    assert not changed(none.get_image(), 100).any()


def test_save(d2, grey, tmp_path) -> None:
    path = tmp_path / "picture.png"
    d2.Visualizer(grey).draw_box((40, 30, 100, 90)).save(str(path))
    saved = np.asarray(Image.open(path).convert("RGB"))
    assert saved.shape == grey.shape
    assert changed(saved, 100).any()
