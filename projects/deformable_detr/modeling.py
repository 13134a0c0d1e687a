"""Deformable DETR: Deformable Transformers for End-to-End Object Detection (Zhu et al., ICLR 2021).

Sections 4.1 and 4.2, and the appendix for iterative refinement and two stages. Deviations: none in
the model; heads that the paper shares are one module here, and the heads belong to the detector
alone, which passes them to the decoder.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from predet.d2 import Instances
from predet.layers.convolution import of_any_width
from predet.layers.mlp import MLP
from predet.layers.norm import group_norm
from predet.layers.position import SinePositionEncoding
from predet.modeling.criterion import SetCriterion
from predet.modeling.detector import Condition, Detector
from predet.modeling.images import PIXEL_MEAN, PIXEL_STD, resize_pad_mask
from predet.modeling.outputs import DetectorOutput
from predet.modeling.postprocess import best_pairs
from predet.projects.deformable_detr.transformer import DeformableTransformer

PRIOR = 0.01  # score of every class before training


class DeformableDETR(Detector):
    """A deformable transformer over several feature maps.

    One stage: `LearnedQueries`. Two stages: `ProposalQueries` with refinement. With refinement each
    decoder layer has heads of its own (`class_head[i]`, `box_head[i]`), and the encoder of a
    two-stage detector the last ones; without, `class_head` and `box_head` serve all layers.

    Args:
        backbone: all its maps are used.
        transformer: its `num_levels` is the number of maps of the backbone, or more: the further
            levels are strided convolutions of the backbone's last map, then of each other.
        queries: where the queries come from.
        criterion: with a focal matcher.
        num_classes: contiguous classes, one logit each.
        with_box_refine: iterative box refinement.
        look_forward_twice: see `DeformableTransformer.decode`.
        top_k: detections an image.
        position_temperature: of the sine encoding.
        pixel_mean: RGB means in 0..255.
        pixel_std: RGB standard deviations in 0..255.
        size_divisibility: padded images have multiples of this as height and width.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        transformer: DeformableTransformer,
        queries: nn.Module,
        criterion: SetCriterion,
        num_classes: int,
        with_box_refine: bool = False,
        look_forward_twice: bool = False,
        top_k: int = 100,
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
        hidden_dim = transformer.hidden_dim
        self.with_box_refine = with_box_refine
        self.look_forward_twice = look_forward_twice
        self.top_k = top_k
        self.transformer = transformer
        self.queries = queries
        self._check()
        self.position_encoding = SinePositionEncoding(
            hidden_dim=hidden_dim, temperature=position_temperature, offset=-0.5
        )
        self.input_proj = input_projections(backbone.channels, hidden_dim, transformer.num_levels)
        self.class_head, self.box_head = self._make_heads()

    @property
    def num_queries(self) -> int:
        """The most objects an image can have."""
        return self.queries.num_queries

    def project(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps of the backbone -> one map of `hidden_dim` channels for each level."""
        maps: list[Tensor] = []
        for level, projection in enumerate(self.input_proj):
            # The first further level reads the backbone's last map, not its projection.
            from_backbone = level <= len(features)
            source = features[min(level, len(features) - 1)] if from_backbone else maps[-1]
            maps.append(projection(source))
        return maps

    def transform(
        self, maps: Sequence[Tensor], pad_mask: Tensor, condition: Condition | None = None
    ) -> DetectorOutput:
        """Raw predictions of every layer; see `Detector.transform`."""
        pad_masks = [resize_pad_mask(pad_mask, m.shape[-2:]) for m in maps]
        positions = [self.position_encoding(mask) for mask in pad_masks]
        memory = self.transformer.encode(maps, pad_masks, positions)
        class_heads = self._layer_heads(self.class_head)
        box_heads = self._layer_heads(self.box_head)
        queries, encoder = self.queries(memory, class_heads[-1], box_heads[-1])
        if condition is not None:
            queries = condition(queries)
        num_layers = self.transformer.num_decoder_layers
        output = self.transformer.decode(
            queries,
            memory,
            class_heads[:num_layers],
            box_heads[:num_layers],
            refine=self.with_box_refine,
            look_forward_twice=self.look_forward_twice,
        )
        return output._replace(encoder=encoder)

    def postprocess(
        self, output: DetectorOutput, sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Instances]]:
        """The `top_k` best pairs of query and class, best first."""
        detections = best_pairs(output, sizes, self.criterion.classification, self.top_k)
        return [{"instances": instances} for instances in detections]

    def _layer_heads(self, head: nn.Module) -> list[nn.Module]:
        """One head for each decoder layer, and the encoder's after them if it has one."""
        if isinstance(head, nn.ModuleList):
            return list(head)
        return [head] * self.transformer.num_decoder_layers

    def _make_heads(self) -> tuple[nn.Module, nn.Module]:
        hidden_dim = self.transformer.hidden_dim
        class_head = nn.Linear(hidden_dim, self.num_classes)
        nn.init.constant_(class_head.bias, -math.log((1 - PRIOR) / PRIOR))
        box_head = MLP(input_dim=hidden_dim, hidden_dim=hidden_dim, output_dim=4, num_layers=3)
        nn.init.zeros_(box_head.layers[-1].weight)
        nn.init.zeros_(box_head.layers[-1].bias)
        if not self.with_box_refine:
            _start_small(box_head)
            return class_head, box_head
        two_stage = self.queries.uses_encoder_heads
        count = self.transformer.num_decoder_layers + two_stage
        class_heads = nn.ModuleList(copy.deepcopy(class_head) for _ in range(count))
        box_heads = nn.ModuleList(copy.deepcopy(box_head) for _ in range(count))
        if not two_stage:
            _start_small(box_heads[0])
        return class_heads, box_heads

    def _check(self) -> None:
        if self.criterion.classification != "focal":
            raise ValueError(
                "Deformable DETR classifies by sigmoid, but its criterion is "
                f"{self.criterion.classification!r}"
            )
        if self.queries.hidden_dim != self.transformer.hidden_dim:
            raise ValueError(
                f"queries have hidden_dim {self.queries.hidden_dim}, the transformer has "
                f"{self.transformer.hidden_dim}"
            )
        if self.queries.uses_encoder_heads and not self.with_box_refine:
            raise ValueError(
                "two-stage queries need with_box_refine=True: the encoder has heads of its own"
            )
        if self.look_forward_twice and not self.with_box_refine:
            raise ValueError("look_forward_twice needs with_box_refine=True")


def input_projections(channels: Sequence[int], hidden_dim: int, num_levels: int) -> nn.ModuleList:
    """One convolution with group normalisation for each level.

    1x1 for the maps of the backbone; 3x3 with stride 2 for the levels after them.

    Raises:
        ValueError: fewer levels than maps.
    """
    if num_levels < len(channels):
        raise ValueError(
            f"num_levels must be at least {len(channels)}, the backbone's maps, got {num_levels}"
        )
    projections = []
    for level in range(num_levels):
        if level < len(channels):
            convolution = nn.Conv2d(channels[level], hidden_dim, kernel_size=1)
        else:
            width = channels[-1] if level == len(channels) else hidden_dim
            convolution = of_any_width(nn.Conv2d(width, hidden_dim, 3, stride=2, padding=1))
        nn.init.xavier_uniform_(convolution.weight)
        nn.init.zeros_(convolution.bias)
        projections.append(nn.Sequential(convolution, group_norm(hidden_dim)))
    return nn.ModuleList(projections)


def _start_small(box_head: MLP) -> None:
    """Boxes start at an eighth of the image's sides rather than at half."""
    with torch.no_grad():
        box_head.layers[-1].bias[2:] = -2.0
