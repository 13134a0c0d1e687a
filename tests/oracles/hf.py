"""Hugging Face transformers as an independent implementation of our detectors.

Small models with random weights, made without a download, and their losses by their own criterion;
`predet.checkpoint.published` knows their names. What of theirs differs from the published code, and
how the oracle steps around it (transformers 5.23):

- `DetrDecoder` with `auxiliary_loss=True` feeds the normalised output of a layer to the next and
  normalises the last twice. The oracle leaves the option off and reads the layers by hooks.
- Heads of several layers are tied to the first one even with refinement, and the decoder's copies
  are others than the detector's. The oracle gives each layer its own and shares them.
- Two-stage models have no encoder loss. The oracle applies their criterion to the encoder's output.
"""

from __future__ import annotations

import copy
import re
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    ResNetConfig,
)
from transformers.loss.loss_deformable_detr import (
    DeformableDetrHungarianMatcher,
    DeformableDetrImageLoss,
)
from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

SIZES = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_queries": 20,
    "two_stage_num_proposals": 20,
    "num_labels": 5,
    "dropout": 0.0,
}


class Prediction(NamedTuple):
    """Per decoder layer, then of the encoder where there is one."""

    logits: list[Tensor]
    boxes: list[Tensor]
    encoder: tuple[Tensor, Tensor] | None


def detr(seed: int) -> DetrForObjectDetection:
    """DETR on a ResNet-18 with random weights."""
    sizes = {name: value for name, value in SIZES.items() if name != "two_stage_num_proposals"}
    config = DetrConfig(backbone_config=_resnet18("stage4"), **sizes)
    return _randomize(DetrForObjectDetection(config).eval(), seed)


def deformable_detr(
    seed: int, *, with_box_refine: bool = False, two_stage: bool = False, num_levels: int = 4
) -> DeformableDetrForObjectDetection:
    """Deformable DETR on a ResNet-18 with random weights, heads as in the published code."""
    stages = ("stage2", "stage3", "stage4") if num_levels > 1 else ("stage4",)
    config = DeformableDetrConfig(
        backbone_config=_resnet18(*stages),
        auxiliary_loss=True,
        with_box_refine=with_box_refine,
        two_stage=two_stage,
        num_feature_levels=num_levels,
        **SIZES,
    )
    model = DeformableDetrForObjectDetection(config).eval()
    if with_box_refine:
        model.class_embed = nn.ModuleList(copy.deepcopy(head) for head in model.class_embed)
        model.bbox_embed = nn.ModuleList(copy.deepcopy(head) for head in model.bbox_embed)
        model.model.decoder.bbox_embed = model.bbox_embed
    else:
        model.class_embed = nn.ModuleList([model.class_embed[0]] * len(model.class_embed))
        model.bbox_embed = nn.ModuleList([model.bbox_embed[0]] * len(model.bbox_embed))
    if two_stage:
        model.model.decoder.class_embed = model.class_embed
    return _randomize(model, seed)


def detr_r50(seed: int) -> DetrForObjectDetection:
    """DETR of the paper's size for COCO, with random weights."""
    config = DetrConfig(backbone_config=_resnet50("stage4"), num_labels=80)
    return _randomize(DetrForObjectDetection(config).eval(), seed)


def deformable_detr_r50(seed: int) -> DeformableDetrForObjectDetection:
    """One-stage Deformable DETR of the paper's size for COCO, with random weights."""
    config = DeformableDetrConfig(
        backbone_config=_resnet50("stage2", "stage3", "stage4"),
        auxiliary_loss=True,
        num_labels=80,
    )
    model = DeformableDetrForObjectDetection(config).eval()
    model.class_embed = nn.ModuleList([model.class_embed[0]] * len(model.class_embed))
    model.bbox_embed = nn.ModuleList([model.bbox_embed[0]] * len(model.bbox_embed))
    return _randomize(model, seed)


def predict(model: nn.Module, pixels: Tensor, pad_mask: Tensor) -> Prediction:
    """All layers' predictions for normalised, padded images; our mask (True = padding)."""
    valid = (~pad_mask).long()
    if isinstance(model, DetrForObjectDetection):
        hidden: list[Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda module, args, output: hidden.append(output))
            for layer in model.model.decoder.layers
        ]
        output = model(pixels, pixel_mask=valid)
        for hook in hooks:
            hook.remove()
        hidden = [model.model.decoder.layernorm(h) for h in hidden]
        logits = [model.class_labels_classifier(h) for h in hidden]
        boxes = [model.bbox_predictor(h).sigmoid() for h in hidden]
        torch.testing.assert_close(logits[-1], output.logits)  # the hooks saw what the model uses
        return Prediction(logits, boxes, None)
    # Earlier layers are only given away together with a loss.
    label = {"class_labels": torch.zeros(1, dtype=torch.long), "boxes": torch.full((1, 4), 0.5)}
    output = model(pixels, pixel_mask=valid, labels=[label] * len(pixels))
    layers = [*output.auxiliary_outputs, {"logits": output.logits, "pred_boxes": output.pred_boxes}]
    encoder = None
    if model.config.two_stage:
        encoder = (output.enc_outputs_class, output.enc_outputs_coord_logits.sigmoid())
    return Prediction(
        [layer["logits"] for layer in layers], [layer["pred_boxes"] for layer in layers], encoder
    )


def losses(model: nn.Module, prediction: Prediction, labels: list[dict]) -> dict[str, Tensor]:
    """Their losses under our names, weighted as published; labels as they want them."""
    if isinstance(model, DetrForObjectDetection):
        matcher = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
        criterion = ImageLoss(matcher, SIZES["num_labels"], 0.1, ["labels", "boxes"])
        weights = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
    else:
        matcher = DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
        criterion = DeformableDetrImageLoss(matcher, SIZES["num_labels"], 0.25, ["labels", "boxes"])
        weights = {"loss_ce": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0}
    layers = list(zip(prediction.logits, prediction.boxes, strict=True))
    found = {}
    for index, (logits, boxes) in enumerate(layers):
        suffix = "" if index == len(layers) - 1 else f"_{index}"
        values = criterion({"logits": logits, "pred_boxes": boxes}, labels)
        found |= {name + suffix: weights[name] * value for name, value in values.items()}
    if prediction.encoder is not None:
        logits, boxes = prediction.encoder
        objects = [
            {"class_labels": torch.zeros_like(label["class_labels"]), "boxes": label["boxes"]}
            for label in labels
        ]
        values = criterion({"logits": logits, "pred_boxes": boxes}, objects)
        found |= {f"{name}_enc": weights[name] * value for name, value in values.items()}
    return {name.replace("loss_ce", "loss_class"): value for name, value in found.items()}


def _resnet18(*out_features: str) -> ResNetConfig:
    return ResNetConfig(
        layer_type="basic",
        embedding_size=64,
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        out_features=list(out_features),
    )


def _resnet50(*out_features: str) -> ResNetConfig:
    return ResNetConfig(out_features=list(out_features))  # its defaults are those of the R50


def _randomize(model: nn.Module, seed: int) -> nn.Module:
    """Weights that leave no term of the model at zero or at a symmetric value."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
            elif re.search(r"norm.*\.weight$", name) or parameter.ndim == 0:
                parameter.copy_(1 + 0.1 * normal(parameter))
            elif name.endswith("query_position_embeddings.weight"):
                parameter.copy_(3 * normal(parameter))  # far apart, for they do not mix much
            elif parameter.ndim == 1:
                parameter.copy_(0.1 * normal(parameter))
            else:
                parameter.copy_(normal(parameter) * parameter[0].numel() ** -0.5)
    for parameter in model.parameters():
        parameter.requires_grad_(True)  # theirs freezes a backbone that is not from timm
    return model
