"""Every detector can learn a handful of images by heart."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_iou

from predet.d2 import Boxes, Instances

COLORS = torch.tensor([[220, 40, 40], [40, 200, 60], [60, 60, 230]], dtype=torch.uint8)


def rectangles(num_images: int) -> list[dict]:
    """One to three bright rectangles on grey, the class is the colour."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for index in range(num_images):
        image = torch.full((3, 64, 96), 90, dtype=torch.uint8)
        boxes, classes = [], []
        for slot in range(1 + index % 3):
            size = torch.randint(14, 30, (2,), generator=generator)
            x = slot * 32 + int(torch.randint(0, 3, (), generator=generator))
            y = int(torch.randint(0, 64 - int(size[1]), (), generator=generator))
            box = [x, y, x + int(size[0]), y + int(size[1])]
            color = int(torch.randint(3, (), generator=generator))
            image[:, box[1] : box[3], box[0] : box[2]] = COLORS[color][:, None, None]
            boxes.append(box)
            classes.append(color)
        instances = Instances((64, 96))
        instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float))
        instances.gt_classes = torch.tensor(classes)
        batch.append({"image": image, "instances": instances})
    return batch


def found(detector, batch) -> float:
    """Share of objects that the k best detections hold, k being the number of objects."""
    detector.eval()
    with torch.no_grad():
        results = detector(batch)
    hits = total = 0
    for sample, result in zip(batch, results, strict=True):
        wanted, instances = sample["instances"], result["instances"]
        best = instances.scores.argsort(descending=True)[: len(wanted)]
        iou = box_iou(wanted.gt_boxes.tensor, instances.pred_boxes.tensor[best])
        same = wanted.gt_classes[:, None] == instances.pred_classes[best][None]
        hits += int(((iou > 0.5) & same).any(dim=1).sum())
        total += len(wanted)
    return hits / total


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["detr", "deformable", "deformable_refine", "deformable_two_stage", "h_deformable"]
)
def test_learns_by_heart(name, detector):
    torch.manual_seed(0)
    model, batch = detector(name), rectangles(6)
    slow = [p for n, p in model.named_parameters() if "sampling_offsets" in n]
    known = {id(p) for p in slow}
    rest = [p for p in model.parameters() if id(p) not in known]
    optimizer = torch.optim.AdamW([{"params": rest}, {"params": slow, "lr": 1e-4}], lr=1e-3)
    assert found(model, batch) < 0.3
    model.train()
    first = None
    for _ in range(400):
        loss = sum(model(batch).values())
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    assert loss.item() < 0.25 * first
    assert found(model, batch) >= 0.9
