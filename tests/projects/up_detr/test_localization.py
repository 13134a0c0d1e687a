"""The measure of localisation on constructed outputs, and its controls."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from predet.d2 import Boxes, Instances
from predet.data.augmentation import ResizeShortSide
from predet.data.box_sources import RandomPatches
from predet.data.pretext_mapper import PatchMaker, PretextMapper
from predet.data.scenes import make_scenes
from predet.data.sources import load_images, without_annotations
from predet.modeling.outputs import DetectorOutput
from predet.projects.up_detr import (
    Found,
    cut_patches,
    localization,
    mean_boxes,
    swapped,
    with_controls,
)


def sample(boxes: list[list[float]], size=(100, 200), patch: int = 0) -> dict:
    instances = Instances(size, gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)))
    image = torch.zeros(3, *size, dtype=torch.uint8)
    return {
        "image": image,
        "instances": instances,
        "patches": torch.full((len(boxes), 3, 8, 8), patch, dtype=torch.uint8),
    }


class Knows:
    """Finds the boxes that belong to the colour of the patches."""

    def __init__(self, boxes: dict[int, list[list[float]]]):
        self.boxes = boxes

    def localize(self, batch):
        found = [torch.tensor(self.boxes[int(s["patches"].max())]) for s in batch]
        return [Found(boxes, torch.full((len(boxes),), 0.75)) for boxes in found]


BOXES = {1: [[0.0, 0, 50, 100], [100, 0, 200, 50]], 2: [[50.0, 0, 100, 100], [0, 0, 10, 10]]}


def test_overlap_is_that_of_each_patch_with_its_own_box():
    batch = [sample([[0, 0, 100, 100], [100, 0, 200, 50]], patch=1), sample(BOXES[2], patch=2)]
    result = localization(Knows(BOXES), [batch])
    torch.testing.assert_close(result.iou, torch.tensor([0.5, 1.0, 1.0, 1.0]))
    assert result.summary() == pytest.approx({"iou": 0.875, "found": 1.0, "score": 0.75})


def test_swapped_patches_are_looked_for_in_the_wrong_image():
    batch = [sample(BOXES[1], patch=1), sample(BOXES[2], patch=2)]
    result = localization(Knows(BOXES), [batch], swap=True)
    assert not result.iou.any()
    assert int(batch[0]["patches"].max()) == 1  # the batch itself is as before
    again = swapped(batch)
    assert [int(s["patches"].max()) for s in again] == [2, 1]
    assert again[0]["instances"] is batch[0]["instances"]


def test_another_image_may_have_fewer_patches():
    batch = [sample(BOXES[1], patch=1), sample(BOXES[2][:1], patch=2)]
    knows = Knows({1: BOXES[1], 2: BOXES[2][:1]})
    assert len(localization(knows, [batch], swap=True).iou) == 2


def test_one_image_has_no_other():
    with pytest.raises(ValueError, match="two images or more"):
        swapped([sample(BOXES[1])])


def test_the_mean_box_is_a_part_of_every_image():
    """Parts (0, 0, 1/2, 1) and (1/2, 0, 1, 1/2) in two images of unlike sizes."""
    batches = [
        [sample([[0, 0, 100, 100]])],
        [sample([[25, 0, 50, 40]], size=(80, 50))],
    ]
    result = mean_boxes(batches)  # the mean is (1/4, 0, 3/4, 3/4)
    first = 0.25 * 0.75 / (0.5 + 0.375 - 0.25 * 0.75)
    second = 0.25 * 0.5 / (0.25 + 0.375 - 0.25 * 0.5)
    torch.testing.assert_close(result.iou, torch.tensor([first, second]))


def test_drawn_patches_depend_on_the_seed_and_the_image_alone(tmp_path, caplog):
    make_scenes(tmp_path, num_images=7, image_size=64, num_classes=2, seed=0)
    cv2.imwrite(str(tmp_path / "images/000003.png"), np.zeros((12, 12, 3), np.uint8))
    dataset = without_annotations(load_images(tmp_path / "images"))
    mapper = PretextMapper(
        augmentation=ResizeShortSide(short_sides=[48], max_size=96),
        boxes=RandomPatches(num_patches=3),
        patches=PatchMaker(size=16),
    )

    def draw(seed: int, size: int) -> dict[str, torch.Tensor]:
        batches = list(cut_patches(dataset, mapper, seed=seed, batch_size=size))
        assert all(len(batch) > 1 for batch in batches)  # there is always another image
        return {s["key"]: s["instances"].gt_boxes.tensor for batch in batches for s in batch}

    first, again, other = draw(0, 5), draw(0, 2), draw(1, 5)
    assert len(first) == 6  # one is too small for patches
    assert caplog.text.count("left out") == 3  # each time
    assert "000003.png: too small for random patches: 12x12 pixels" in caplog.text
    assert first.keys() == again.keys() == other.keys()
    assert all(first[key].equal(again[key]) for key in first)
    assert not any(first[key].equal(other[key]) for key in first)
    for seed in range(3):
        few = [s for b in cut_patches(dataset, mapper, seed=seed, num_images=3) for s in b]
        chosen = np.random.default_rng(seed).permutation(7)[:3]
        keys = {dataset.key(int(index)) for index in chosen} - {"000003.png"}
        assert {sample["key"] for sample in few} == keys
    with pytest.raises(ValueError, match="no patches can be cut out of the 1 images"):
        list(cut_patches(dataset.select([dataset.keys().index("000003.png")]), mapper, seed=0))


def test_controls_are_measured_on_the_same_patches():
    batch = [sample(BOXES[1], patch=1), sample(BOXES[2], patch=2)]
    nowhere = Knows({n: [[0.0, 0, 1, 1]] * 2 for n in (1, 2)})
    result = with_controls(Knows(BOXES), nowhere, [batch])
    assert result.own.iou.tolist() == [1.0] * 4
    assert result.swapped.iou.tolist() == [0.0] * 4
    assert result.untrained.iou.max() < 0.02
    assert torch.equal(result.mean_box.iou, mean_boxes([batch]).iou)


@pytest.mark.parametrize("name", ["detr", "deformable"])
def test_the_most_confident_query_of_the_own_group_is_asked(detector, updetr, name, monkeypatch):
    """Twenty queries, three groups of 7, 7 and 6; the surest of each is not its first."""
    model = updetr(detector(name), num_patches=3).eval()
    layers, classes = 3, 6 if name == "detr" else 5
    logits = torch.zeros(layers, 2, 20, classes)
    boxes = torch.full((layers, 2, 20, 4), 0.5)
    for image, (first, second, third) in enumerate([(3, 7, 19), (6, 13, 14)]):
        for row, query in enumerate((first, second, third)):
            logits[-1, image, query, 0] = 3.0
            boxes[-1, image, query] = torch.tensor([0.1 * (row + 1), 0.5, 0.2, 1.0])
    logits[-1, 0, 5, 1] = 9.0  # sure of another class
    logits[0, 0, 1, 0] = 9.0  # sure in an earlier layer
    output = DetectorOutput(logits, logits, boxes)
    monkeypatch.setattr(model.detector, "detect", lambda *_: output)
    batch = [sample([[0, 0, 40, 100]] * 3), sample([[0, 0, 10, 10]] * 2, size=(50, 100))]
    found = model.localize(batch)
    torch.testing.assert_close(
        found[0].boxes,
        torch.tensor([[0.0, 0, 40, 100], [20, 0, 60, 100], [40, 0, 80, 100]]),
        atol=1e-4, rtol=0,
    )  # fmt: skip
    torch.testing.assert_close(
        found[1].boxes, torch.tensor([[0.0, 0, 20, 50], [10, 0, 30, 50]]), atol=1e-4, rtol=0
    )
    logit = torch.tensor(3.0)
    wanted = logit.exp() / (logit.exp() + 5) if name == "detr" else logit.sigmoid()
    torch.testing.assert_close(found[0].scores, wanted.expand(3))
