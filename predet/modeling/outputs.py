"""Typed seams between the parts of a detector.

Legend: B batch, Q queries, D channels, L decoder layers, K logits, S encoder tokens.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Queries(NamedTuple):
    """What the decoder starts from: the seam where pre-training conditions a detector."""

    content: Tensor  # (B, Q, D), the residual stream
    position: Tensor  # (B, Q, D), added to queries and keys in every layer
    attention_mask: Tensor | None = None  # (Q, Q) or (B, Q, Q), True = blocked; None = all see all
    # Deformable detectors only: (B, Q, 2) points or (B, Q, 4) cxcywh boxes in [0, 1] of the image.
    reference: Tensor | None = None


class EncoderOutput(NamedTuple):
    """One proposal per encoder token, of two-stage detectors."""

    logits: Tensor  # (B, S, K); column 0 is "object", the only one used
    boxes: Tensor  # (B, S, 4), cxcywh in [0, 1]; tokens without a proposal are all ones


class DetectorOutput(NamedTuple):
    """Raw predictions, before post-processing; index -1 is the last decoder layer."""

    hidden: Tensor  # (L, B, Q, D), what the heads read
    logits: Tensor  # (L, B, Q, K)
    boxes: Tensor  # (L, B, Q, 4), fp32 cxcywh in [0, 1] of the unpadded image
    encoder: EncoderOutput | None = None
    # Of further queries that share the targets among several, in training only (H-DETR).
    one_to_many: DetectorOutput | None = None

    def select(self, queries: slice) -> DetectorOutput:
        """The output of some of these queries alone: without encoder and further queries."""
        return DetectorOutput(
            self.hidden[:, :, queries], self.logits[:, :, queries], self.boxes[:, :, queries]
        )
