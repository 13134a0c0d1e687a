"""DETR: End-to-End Object Detection with Transformers (Carion et al., ECCV 2020).

Section 3.2 and appendix A.3. Deviations: none in the model; classes are contiguous and "no object"
is the last logit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from predet.d2 import Instances
from predet.layers.mlp import MLP
from predet.layers.position import SinePositionEncoding
from predet.layers.transformer import Transformer
from predet.modeling.criterion import SetCriterion
from predet.modeling.detector import Condition, Detector
from predet.modeling.images import PIXEL_MEAN, PIXEL_STD, resize_pad_mask
from predet.modeling.outputs import DetectorOutput, Queries
from predet.modeling.postprocess import best_per_query


class DETR(Detector):
    """A transformer over the last feature map; one set of heads for all decoder layers.

    Args:
        backbone: its last map is used.
        transformer: encoder and decoder.
        criterion: with a softmax matcher.
        num_classes: contiguous classes; there is one logit more.
        num_queries: the most objects an image can have.
        position_temperature: of the sine encoding.
        pixel_mean: RGB means in 0..255.
        pixel_std: RGB standard deviations in 0..255.
        size_divisibility: padded images have multiples of this as height and width.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        transformer: Transformer,
        criterion: SetCriterion,
        num_classes: int,
        num_queries: int = 100,
        position_temperature: float = 10_000.0,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        size_divisibility: int = 1,
    ) -> None:
        super().__init__(
            backbone=backbone,
            criterion=criterion,
            num_classes=num_classes,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            size_divisibility=size_divisibility,
        )
        if criterion.classification != "softmax":
            raise ValueError(
                f"DETR classifies by softmax, but its criterion is {criterion.classification!r}"
            )
        hidden_dim = transformer.hidden_dim
        self.num_queries = num_queries
        self.input_proj = nn.Conv2d(backbone.channels[-1], hidden_dim, kernel_size=1)
        self.position_encoding = SinePositionEncoding(
            hidden_dim=hidden_dim, temperature=position_temperature
        )
        self.transformer = transformer
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.class_head = nn.Linear(hidden_dim, num_classes + 1)
        self.box_head = MLP(input_dim=hidden_dim, hidden_dim=hidden_dim, output_dim=4, num_layers=3)

    def project(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The last map of the backbone, projected."""
        return [self.input_proj(features[-1])]

    def transform(
        self, maps: Sequence[Tensor], pad_mask: Tensor, condition: Condition | None = None
    ) -> DetectorOutput:
        """Raw predictions of every layer; see `Detector.transform`."""
        (tokens,) = maps
        pad_mask = resize_pad_mask(pad_mask, tokens.shape[-2:])
        position = self.position_encoding(pad_mask).flatten(2).transpose(1, 2)  # (B, N, D)
        tokens, pad_mask = tokens.flatten(2).transpose(1, 2), pad_mask.flatten(1)
        memory = self.transformer.encode(tokens, position, pad_mask)
        queries = self.queries(len(tokens))
        if condition is not None:
            queries = condition(queries)
        hidden = self.transformer.decode(
            queries.content, queries.position, memory, position, pad_mask, queries.attention_mask
        )  # (L, B, Q, D)
        # Box heads in fp32 under autocast too: bf16 has three digits for a coordinate.
        with torch.autocast(hidden.device.type, enabled=False):
            boxes = self.box_head(hidden.to(self.query_embed.weight.dtype)).float().sigmoid()
        return DetectorOutput(hidden, self.class_head(hidden), boxes)

    def queries(self, batch_size: int) -> Queries:
        """What the decoder starts from: no content, learned positions."""
        position = self.query_embed.weight.expand(batch_size, -1, -1)
        return Queries(content=torch.zeros_like(position), position=position)

    def postprocess(
        self, output: DetectorOutput, sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Instances]]:
        """One detection a query, in the order of the queries."""
        detections = best_per_query(output, sizes, self.criterion.classification)
        return [{"instances": instances} for instances in detections]
