"""Weights that the papers' authors published, under predet's names.

Read are the files of DETR, Deformable DETR (all variants), H-Deformable DETR, UP-DETR and DETReg,
and detectors of Hugging Face transformers of the first two. Only names change, and which rows of
the class head are kept; every tensor is either given a name or known to be left out.

SwAV, torchvision and Swin classification files need nothing of this: backbones read them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

Rename = tuple[str, str]  # pattern, replacement

# Raw ids of COCO's 80 classes, and their names; the others of 0..90 were never given out.
_RAW = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
COCO_CLASSES = {
    index: name for index, name in enumerate(_RAW) if name not in ("__background__", "N/A")
}
_RAW_COLUMNS = 91

# Of methods' own parts: a file that has them was pre-trained, and its class head knows no classes.
_SIBLINGS = ("patch2query.", "feature_align.", "feature_embed.")
# Counters of profilers, and buffers of Swin that follow from its sizes.
_LEFT_OUT = r"(total_(ops|params)|attn_mask|relative_position_index)$"


class Published(NamedTuple):
    """What was read."""

    layout: str  # what kind of file it is, in words
    weights: dict[str, Tensor]  # by predet's names
    class_names: list[str] | None  # None where the head does not tell, or is left out
    left_out: tuple[str, ...]  # names in the file


def from_published(state: Mapping[str, Any]) -> Published:
    """Rename the weights of a published detector.

    A class head with 91 columns (92 with "no object") has one for each raw COCO id: the 80 in use
    are kept, in their order. The encoder's head of a two-stage detector keeps its first 80
    columns: the first is objectness, the others are not used. Other heads are kept as they are.
    Heads of files that were pre-trained without classes are left out.

    Args:
        state: what `read_checkpoint` returned: a state dict, or one under "model".

    Raises:
        ValueError: the names are of no layout known here, or none of them is of a head.
    """
    weights = state.get("model", state)
    tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    if any(name.startswith(("model.backbone.", "model.input_proj")) for name in tensors):
        return _from_hugging_face(tensors)
    if any(name.startswith("backbone.0.body.") for name in tensors):
        return _from_authors(tensors)
    raise ValueError(
        "no published detector known here: expected names such as backbone.0.body.conv1.weight or "
        f"model.backbone...; got {', '.join(sorted(tensors)[:3]) or 'no tensors'}"
    )


def _from_authors(tensors: Mapping[str, Tensor]) -> Published:
    deformable = "transformer.level_embed" in tensors
    tensors, left_out = _heads_by_one_name(tensors, "transformer.decoder.")
    left_out |= {name for name in tensors if re.search(_LEFT_OUT, name)}
    left_out |= {name for name in tensors if name.startswith(_SIBLINGS)}
    kept = {name: value for name, value in tensors.items() if name not in left_out}
    renamed = _rename(kept, [*_AUTHORS, *(_AUTHORS_DEFORMABLE if deformable else _AUTHORS_DETR)])
    pretrained = any(name.startswith(_SIBLINGS) for name in left_out)
    family = "DETR"
    if deformable:
        renamed = _merge_shared_heads(renamed)
        two_stage = "queries.pos_trans.weight" in renamed
        mixed = two_stage and "queries.query_embed.weight" in renamed
        family = f"{'H-' * mixed}Deformable DETR{' (two-stage)' * (two_stage and not mixed)}"
    layout = f"authors' {family}{', pre-trained without classes' * pretrained}"
    return _finish(layout, renamed, sorted(left_out), drop_classes=pretrained)


def _from_hugging_face(tensors: Mapping[str, Tensor]) -> Published:
    deformable = "model.level_embed" in tensors
    kept, left_out = _heads_by_one_name(tensors, "model.decoder.")
    renamed = _merge_projections(_rename(kept, _HUGGING_FACE))
    embedding = renamed.pop("model.query_position_embeddings.weight", None)
    if embedding is not None:
        renamed["queries.query_embed.weight" if deformable else "query_embed.weight"] = embedding
    if deformable:
        renamed = _repeat_shared_class_head(_merge_shared_heads(renamed))
    layout = f"Hugging Face's {'Deformable ' * deformable}DETR"
    return _finish(layout, renamed, sorted(left_out), drop_classes=False)


def _heads_by_one_name(
    tensors: Mapping[str, Tensor], second: str
) -> tuple[dict[str, Tensor], set[str]]:
    """Heads without their second names, which begin with `second`, and those names that go.

    transformers' `save_pretrained` writes one name of a tensor, which can be the second.
    """
    found, left_out = {}, set()
    for name, tensor in tensors.items():
        first = name.removeprefix(second)
        if first == name or not first.startswith(("class_embed.", "bbox_embed.")):
            found[name] = tensor
        elif first in tensors:
            left_out.add(name)
        else:
            found[first] = tensor
    return found, left_out


def _rename(tensors: Mapping[str, Tensor], rules: Sequence[Rename]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor
    return found


def _merge_shared_heads(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Heads that are the same for all layers become one; without refinement they are."""
    copies = re.compile(r"^(class_head|box_head)\.(\d+)\.(.*)")
    heads = [name for name in tensors if copies.match(name)]
    first = {name: re.sub(copies, r"\1.0.\3", name) for name in heads}
    if not all(torch.equal(tensors[name], tensors[first[name]]) for name in heads):
        return tensors
    merged = {name: value for name, value in tensors.items() if name not in first}
    return merged | {re.sub(copies, r"\1.\3", name): tensors[name] for name in first.values()}


def _repeat_shared_class_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A class head for each box head: transformers writes what layers share once."""
    layers = _head_numbers(tensors, "box_head")
    if len(layers) < 2 or _head_numbers(tensors, "class_head") != {0}:
        return tensors
    shared = [name for name in tensors if name.startswith("class_head.0.")]
    return tensors | {
        name.replace(".0.", f".{layer}.", 1): tensors[name] for layer in layers for name in shared
    }


def _head_numbers(tensors: Mapping[str, Tensor], kind: str) -> set[int]:
    """Layers that have a head of their own."""
    matches = (re.match(rf"{kind}\.(\d+)\.", name) for name in tensors)
    return {int(match[1]) for match in matches if match}


def _merge_projections(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Queries', keys' and values' projections of an attention, one above the other."""
    found = {}
    for name, tensor in tensors.items():
        if match := re.match(r"(.*)\.q_proj\.(weight|bias)$", name):
            stem, kind = match.groups()
            parts = [tensors[f"{stem}.{x}_proj.{kind}"] for x in "qkv"]
            found[f"{stem}.in_proj_{kind}"] = torch.cat(parts)
        elif not re.search(r"\.[kv]_proj\.", name):
            found[name] = tensor
    return found


def _finish(
    layout: str, weights: dict[str, Tensor], left_out: Sequence[str], *, drop_classes: bool
) -> Published:
    heads = [name for name in weights if name.startswith("class_head.")]
    if drop_classes:
        weights = {name: value for name, value in weights.items() if name not in heads}
        return Published(layout, weights, None, (*left_out, *heads))
    if not any(name.startswith(("class_head.", "box_head.")) for name in weights):
        raise ValueError(
            f"{layout}, but without heads: expected class_embed and bbox_embed, or "
            "class_labels_classifier and bbox_predictor; save the detector, not its base model"
        )
    columns = {len(weights[name]) for name in heads}
    softmax = "query_embed.weight" in weights  # DETR; it has "no object" as its last column
    if columns != {_RAW_COLUMNS + softmax}:
        return Published(layout, weights, None, tuple(left_out))
    rows = [*COCO_CLASSES, *([_RAW_COLUMNS] if softmax else [])]
    encoder_head = _encoder_head(weights)
    for name in heads:
        own = list(range(len(rows))) if name.startswith(encoder_head) else rows
        weights[name] = weights[name][own]
    return Published(layout, weights, list(COCO_CLASSES.values()), tuple(left_out))


def _encoder_head(weights: Mapping[str, Tensor]) -> str:
    """Prefix of the encoder's class head; of nothing where there is none."""
    if "queries.pos_trans.weight" not in weights:
        return "no head"
    return f"class_head.{max(_head_numbers(weights, 'class_head'))}."


_AUTHORS: list[Rename] = [
    (r"^backbone\.0\.body\.", "backbone."),
    # Swin, as `predet.modeling.swin.to_own_names`, which this room may not import.
    *(
        (rf"^backbone\.layers\.{i}\.downsample", f"backbone.layers.{i + 1}.downsample")
        for i in (2, 1, 0)
    ),
    *((rf"^backbone\.norm{i}\.", f"backbone.output_norms.stage{i + 2}.") for i in range(4)),
    (r"^class_embed", "class_head"),
    (r"^bbox_embed", "box_head"),
    (r"^transformer\.(encoder|decoder)\.norm\.", r"transformer.\1_norm."),
    (r"^transformer\.(encoder|decoder)\.layers\.", r"transformer.\1_layers."),
    (r"\.(linear[12])\.", r".ffn.\1."),
    (r"(encoder_layers\.\d+)\.norm1", r"\1.self_attn_norm"),
    (r"(encoder_layers\.\d+)\.norm2", r"\1.ffn_norm"),
    (r"(decoder_layers\.\d+)\.norm3", r"\1.ffn_norm"),
]
_AUTHORS_DETR: list[Rename] = [
    (r"multihead_attn", "cross_attn"),
    (r"(decoder_layers\.\d+)\.norm1", r"\1.self_attn_norm"),
    (r"(decoder_layers\.\d+)\.norm2", r"\1.cross_attn_norm"),
]
_AUTHORS_DEFORMABLE: list[Rename] = [
    (r"(decoder_layers\.\d+)\.norm1", r"\1.cross_attn_norm"),  # by name, not in order of use
    (r"(decoder_layers\.\d+)\.norm2", r"\1.self_attn_norm"),
    (r"^transformer\.(enc_output|pos_trans|reference_points)", r"queries.\1"),
    (r"^query_embed", "queries.query_embed"),
]
_HUGGING_FACE: list[Rename] = [
    (r"^model\.backbone\.(conv_encoder\.)?model\.", "backbone."),
    (r"^backbone\.embedder\.embedder\.convolution", "backbone.conv1"),
    (r"^backbone\.embedder\.embedder\.normalization", "backbone.bn1"),
    *((rf"^backbone\.encoder\.stages\.{i}\.", f"backbone.layer{i + 1}.") for i in range(4)),
    *(
        (rf"(layer\d)\.layers\.(\d+)\.layer\.{i}\.{theirs}", rf"\1.\2.{ours}{i + 1}")
        for i in range(3)
        for theirs, ours in (("convolution", "conv"), ("normalization", "bn"))
    ),
    (r"(layer\d)\.layers\.(\d+)\.shortcut\.convolution", r"\1.\2.downsample.0"),
    (r"(layer\d)\.layers\.(\d+)\.shortcut\.normalization", r"\1.\2.downsample.1"),
    (r"^model\.(encoder|decoder)\.layers\.", r"transformer.\1_layers."),
    (r"^model\.decoder\.layernorm", "transformer.decoder_norm"),
    (r"^model\.level_embed", "transformer.level_embed"),
    (r"^model\.(enc_output|pos_trans|reference_points)", r"queries.\1"),
    (r"^model\.input_proj(ection)?", "input_proj"),
    (r"(\.mlp)?\.fc([12])\.", r".ffn.linear\2."),
    (r"encoder_attn", "cross_attn"),
    (r"attn_layer_norm", "attn_norm"),
    (r"final_layer_norm", "ffn_norm"),
    (r"\.o_proj", ".out_proj"),
    (r"^(class_labels_classifier|class_embed)", "class_head"),
    (r"^(bbox_predictor|bbox_embed)", "box_head"),
]
