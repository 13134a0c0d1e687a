"""Why is AP zero? The usual reasons, told apart by looking at the detections."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from predet.evaluation.average_precision import ImageDetections
from predet.evaluation.overlap import iou

IMAGES_LOOKED_AT = 200


def explain_zero(
    truth: dict[str, Any], detections: Sequence[ImageDetections], class_names: Sequence[str]
) -> str:
    """One message that says which of the usual reasons fits.

    Args:
        truth: content of a COCO file.
        detections: of the images of `truth`.
        class_names: contiguous, as the detections' classes index them.
    """
    label_of = {category["id"]: label for label, category in enumerate(truth["categories"])}
    objects: dict[int, list[tuple[np.ndarray, int]]] = defaultdict(list)
    for annotation in truth["annotations"]:
        x, y, width, height = annotation["bbox"]
        corners = np.asarray([x, y, x + width, y + height])
        objects[annotation["image_id"]].append((corners, label_of[annotation["category_id"]]))
    if not objects:
        return (
            f"There is no AP: none of the {len(truth['images'])} images has a ground-truth box. "
            "Is this the right annotation file and split?"
        )
    number = sum(len(image.scores) for image in detections)
    if number == 0:
        return (
            f"AP is zero because the model found nothing at all in {len(detections)} images. Is a "
            "score threshold too high, or were no weights loaded?"
        )
    largest = max(float(np.abs(image.boxes).max()) for image in detections if len(image.boxes))
    if largest <= 2.0:
        return (
            f"AP is about zero: no predicted coordinate is larger than {largest:.2f}. Boxes must "
            "be absolute pixels of the original image, these look relative to its size."
        )
    return _explain_overlap(objects, detections, class_names)


def _explain_overlap(
    objects: dict[int, list[tuple[np.ndarray, int]]],
    detections: Sequence[ImageDetections],
    class_names: Sequence[str],
) -> str:
    best: list[float] = []  # for each object: IoU of the detection that fits best
    confused: Counter[tuple[int, int]] = Counter()  # (true, predicted) where boxes fit
    with_objects = [image for image in detections if image.image_id in objects]
    for image in with_objects[:IMAGES_LOOKED_AT]:
        boxes = np.stack([box for box, _ in objects[image.image_id]])
        if not len(image.boxes):
            best += [0.0] * len(boxes)
            continue
        overlap = iou(boxes, image.boxes.astype(np.float64))
        best += overlap.max(axis=1).tolist()
        for row, (_, label) in enumerate(objects[image.image_id]):
            fitting = np.flatnonzero(overlap[row] >= 0.5)
            if len(fitting):
                strongest = fitting[image.scores[fitting].argmax()]
                confused[label, int(image.classes[strongest])] += 1
    covered = float(np.mean(np.asarray(best) >= 0.5)) if best else 0.0
    scores = np.concatenate([image.scores for image in detections])
    summary = (
        f"{len(scores) / len(detections):.0f} detections an image, best score {scores.max():.3f}"
    )
    right = sum(count for (true, predicted), count in confused.items() if true == predicted)
    if covered >= 0.1 and right < 0.1 * sum(confused.values()):
        pairs = ", ".join(
            f"{class_names[true]} found as {class_names[predicted]} ({count}x)"
            for (true, predicted), count in confused.most_common(3)
        )
        return (
            f"AP is about zero although boxes fit ({100 * covered:.0f}% of the objects have one "
            f"with IoU >= 0.5; {summary}): their classes do not: {pairs}. Does the model know the "
            "same classes in the same order?"
        )
    if covered < 0.1:
        return (
            f"AP is about zero because boxes do not fit: the best IoU of an object is "
            f"{np.median(best) if best else 0.0:.2f} in the median, {100 * covered:.0f}% of the "
            f"objects have a box with IoU >= 0.5 ({summary}). Early in training this is normal; "
            "else look at the pictures: tools/visualize.py detections."
        )
    return (
        f"AP is about zero although {100 * covered:.0f}% of the objects have a box with IoU >= 0.5 "
        f"({summary}): right boxes have lower scores than wrong ones. Early in training this is "
        "normal."
    )
