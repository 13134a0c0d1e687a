"""From raw predictions to detections."""

from __future__ import annotations

import torch

from predet.modeling.outputs import DetectorOutput
from predet.modeling.postprocess import best_pairs, best_per_query, class_scores, original_sizes

BOXES = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.1, 0.1, 0.4, 0.2], [0.5, 0.5, 1.0, 1.0]])
SIZES = [(100, 200)]


def make_output(logits) -> DetectorOutput:
    """Two layers, of which the first must not be read."""
    logits = torch.tensor(logits)[None, None]
    boxes = BOXES[None, None]
    return DetectorOutput(
        torch.zeros(2, 1, 3, 4), torch.cat([-logits, logits]), torch.cat([boxes / 2, boxes])
    )


def test_best_per_query_of_softmax_leaves_out_no_object():
    output = make_output([[1.0, 2.0, 5.0], [3.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
    (instances,) = best_per_query(output, SIZES, "softmax")
    assert instances.image_size == (100, 200)
    assert instances.pred_classes.tolist() == [1, 0, 0]
    probabilities = output.logits[-1, 0].softmax(-1)
    torch.testing.assert_close(instances.scores, probabilities[[0, 1, 2], [1, 0, 0]])
    expected = [[80.0, 30.0, 120.0, 70.0], [0.0, 0.0, 60.0, 20.0], [0.0, 0.0, 200.0, 100.0]]
    torch.testing.assert_close(instances.pred_boxes.tensor, torch.tensor(expected))


def test_best_pairs_can_take_a_query_twice():
    output = make_output([[1.0, 2.0, -5.0], [-3.0, 1.5, 0.0], [-4.0, -4.0, -4.0]])
    (instances,) = best_pairs(output, SIZES, "focal", 3)
    assert instances.pred_classes.tolist() == [1, 1, 0]
    torch.testing.assert_close(instances.scores, torch.tensor([2.0, 1.5, 1.0]).sigmoid())
    assert instances.pred_boxes.tensor[:, 0].tolist() == [80.0, 0.0, 80.0]


def test_best_pairs_gives_all_where_there_are_fewer():
    output = make_output([[1.0, 2.0, -5.0], [-3.0, 1.5, 0.0], [-4.0, -4.0, -4.0]])
    (instances,) = best_pairs(output, SIZES, "focal", 100)
    assert len(instances) == 9


def test_best_per_query_of_a_focal_detector():
    output = make_output([[1.0, 2.0, -5.0], [-3.0, 1.5, 0.0], [-4.0, -4.0, -1.0]])
    (instances,) = best_per_query(output, SIZES, "focal")
    assert instances.pred_classes.tolist() == [1, 1, 2]
    torch.testing.assert_close(instances.scores, torch.tensor([2.0, 1.5, -1.0]).sigmoid())


def test_scores_are_fp32():
    assert class_scores(torch.zeros(2, 3).bfloat16(), "softmax").dtype == torch.float32
    assert class_scores(torch.zeros(2, 3).bfloat16(), "focal").shape == (2, 3)


def test_original_sizes():
    image = torch.zeros(3, 7, 9)
    batch = [{"image": image, "height": 70, "width": 90}, {"image": image}]
    assert original_sizes(batch) == [(70, 90), (7, 9)]
