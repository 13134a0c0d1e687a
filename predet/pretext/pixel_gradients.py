"""Which pixels move a prediction: DETReg's Figure 5, after Deformable DETR's appendix.

Of the most confident query of an image: how much the centre of its box, and what it tells of its
region, change with each pixel. A pre-trained detector should look at edges for the centre and at
the object for the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from predet.modeling.outputs import DetectorOutput
from predet.modeling.postprocess import class_scores
from predet.ops.boxes import cxcywh_to_xyxy
from predet.pretext.pretraining import Pretraining


class PixelGradients(NamedTuple):
    """Of one query of one image of H x W pixels; on the CPU, in fp32."""

    box: Tensor  # (4,) absolute xyxy in the frame of the image
    score: float
    x: Tensor  # (H, W): norm over the colours of the gradient of the centre's x
    y: Tensor  # (H, W): the same of its y
    embedding: Tensor | None  # (H, W): of all values of the embedding; None where there is none


def pixel_gradients(
    model: Pretraining, sample: Mapping[str, Any], *, draws: int = 32, seed: int = 0
) -> PixelGradients:
    """Gradients of the most confident query with respect to the normalised pixels.

    An embedding has hundreds of values, each with a gradient; the root of the sum of their squares
    is found from random sums of them: the mean of the squared gradient of v . z over normal v is
    that sum.

    Args:
        model: in evaluation mode; with a feature target, if embeddings are asked for.
        sample: a dict with "image" (3, H, W).
        draws: of v; the error is a part of about 1 / sqrt(draws).
        seed: of v.
    """
    detector = model.detector
    images = detector.preprocess([sample])
    pixels = images.pixels.requires_grad_()
    output = detector.detect(images._replace(pixels=pixels))
    scores = class_scores(output.logits[-1, 0], detector.criterion.classification).amax(dim=-1)
    query = int(scores.argmax())
    box = output.boxes[-1, 0, query]

    def norms(values: list[Tensor]) -> Tensor:
        """Scalars -> (H, W), root of the mean squared gradient, summed over colours."""
        total = torch.zeros_like(pixels)
        for value in values:
            (gradient,) = torch.autograd.grad(value, pixels, retain_graph=True)
            total += gradient.square()
        height, width = images.sizes[0]
        return (total / len(values)).sum(dim=1).sqrt()[0, :height, :width].cpu()

    height, width = images.sizes[0]
    corners = cxcywh_to_xyxy(box.detach()) * box.new_tensor([width, height] * 2)
    embedding = _embedding(model, output, query)
    if embedding is not None:
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(draws, len(embedding), generator=generator).to(embedding)
        embedding = norms(list(directions @ embedding))
    return PixelGradients(
        corners.cpu(), float(scores[query].detach()), norms([box[0]]), norms([box[1]]), embedding
    )


def _embedding(model: Pretraining, output: DetectorOutput, query: int) -> Tensor | None:
    """What a query of the last layer tells of its region, (F,)."""
    if model.feature_target is None:
        return None
    return model.feature_target.predict(output.hidden[-1, 0, query])
