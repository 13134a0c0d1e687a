"""ResNet backbones from torchvision, with the rules for norms, freezing and weights.

A backbone maps (B, 3, H, W) to a tuple of feature maps and has `channels` and `strides`, one entry
per map. Two combinations are refused unless asked for by name, because they train to nothing
without an error: frozen batch normalisation over random weights normalises nothing, and frozen
random stages are no region encoder.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from predet.layers.checkpointing import run_block
from predet.layers.norm import NormName, convolve_and_normalize, freeze_batch_norm, norm_layer
from predet.modeling.weights import (
    depths_by_prefix,
    load_whole,
    read_state_dict,
    refuse_random_frozen,
)

logger = logging.getLogger(__name__)

DEPTHS = (18, 34, 50, 101)
STAGES = (2, 3, 4, 5)

# Parts of published files that no detector has a use for: classifiers and self-supervised heads.
_NOT_BACKBONE = re.compile(r"(fc|projection_head|prototypes)\.")


class ResNet(nn.Module):
    """A ResNet without its classifier; parameters are named as in torchvision.

    Stages are counted as in Detectron2: 1 is the stem, stages 2 to 5 are `layer1` to `layer4`, of
    strides 4, 8, 16 and 32.

    Args:
        depth: 18, 34, 50 or 101.
        weights: None starts from random, "torchvision" downloads the ImageNet weights of the
            papers (IMAGENET1K_V1), anything else is the path of a state dict in torchvision's
            names (`module.` prefixes, wrappers `state_dict` and `model`, and classifier or
            projection heads are dropped).
        norm: "frozen_bn" (the papers), "bn", "sync_bn" or "gn" (32 groups).
        freeze_at: the first `freeze_at` stages are not trained; 0 = all are, 2 = the papers'.
        out_stages: whose maps are returned, ascending. Stages after the last are not built.
        dilation: stride 16 instead of 32 in stage 5, dilated (DC5); depth 50 and 101.
        checkpointing: compute the activations of a residual block again in the backward pass.
        allow_random_frozen: accept frozen parts over random weights: for controls and tests, and
            where a checkpoint of the whole detector will be loaded.
    """

    def __init__(
        self,
        *,
        depth: int,
        weights: str | None,
        norm: NormName = "frozen_bn",
        freeze_at: int = 2,
        out_stages: Sequence[int] = (5,),
        dilation: bool = False,
        checkpointing: bool = False,
        allow_random_frozen: bool = False,
    ) -> None:
        super().__init__()
        out_stages = tuple(out_stages)
        _check(depth, out_stages, freeze_at, dilation)
        if weights is None and not allow_random_frozen:
            refuse_random_frozen(
                "ResNet",
                frozen_norm=norm == "frozen_bn",
                freeze_at=freeze_at,
                remedy="norm='gn' or 'bn'",
            )
        network = torchvision.models.get_model(
            f"resnet{depth}",
            weights=None,
            norm_layer=norm_layer(norm),
            replace_stride_with_dilation=(False, False, dilation),
        )
        self.conv1, self.bn1, self.relu, self.maxpool = (
            network.conv1,
            network.bn1,
            network.relu,
            network.maxpool,
        )
        for stage in range(STAGES[0], out_stages[-1] + 1):
            name = _layer_name(stage)
            self.add_module(name, getattr(network, name))
        self.out_stages = out_stages
        self.checkpointing = checkpointing
        # Not with group normalisation: its backward pass takes up to 24 times as long in bfloat16.
        self.cpu_channels_last = norm != "gn"
        self.pretrained = weights is not None
        width = 64 if depth < 50 else 256
        self.channels = tuple(width * 2 ** (stage - 2) for stage in out_stages)
        self.strides = tuple(16 if dilation and s == 5 else 2**s for s in out_stages)
        if weights is not None:
            self._load(weights, depth, norm)
        self._freeze(freeze_at)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) normalised -> one (B, channels[i], H / strides[i], W / strides[i]) each."""
        on_cpu = pixels.device.type == "cpu"
        if on_cpu and self.cpu_channels_last:
            # Convolutions are faster so, and the maps need no transposing to become tokens.
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        x = self.relu(convolve_and_normalize(self.conv1, self.bn1, pixels))
        if on_cpu and x.is_contiguous():
            # Pooling takes 18 times as long in the usual layout, in which the rest goes on.
            x = self.maxpool(x.contiguous(memory_format=torch.channels_last)).contiguous()
        else:
            x = self.maxpool(x)
        maps = []
        for stage in range(STAGES[0], self.out_stages[-1] + 1):
            for block in getattr(self, _layer_name(stage)):
                x = run_block(_residual, block, x, checkpointing=self.checkpointing)
            if stage in self.out_stages:
                maps.append(x)
        return tuple(maps)

    def layer_depths(self) -> dict[str, int]:
        """How deep each parameter lies: 0 is the stem, then one more for each residual block."""
        stages = range(STAGES[0], self.out_stages[-1] + 1)
        blocks = [
            f"{_layer_name(stage)}.{index}."
            for stage in stages
            for index in range(len(getattr(self, _layer_name(stage))))
        ]
        return depths_by_prefix(self, blocks)

    def _load(self, weights: str, depth: int, norm: str) -> None:
        if weights == "torchvision":
            published = torchvision.models.get_model_weights(f"resnet{depth}").IMAGENET1K_V1
            state = published.get_state_dict(progress=False, check_hash=True)
            source = str(published)
        else:
            state, source = read_state_dict(weights, instead="None, 'torchvision'"), weights
        state = {name: tensor for name, tensor in state.items() if self._wants(name)}
        # Counts batches for a momentum that we do not use; frozen norms drop it.
        counters = {n for n in {*self.state_dict(), *state} if n.endswith("num_batches_tracked")}
        what = f"{source} do not fit ResNet-{depth} with norm={norm!r}"
        load_whole(self, state, what=what, optional=counters)
        logger.info("backbone: %d tensors from %s", len(state), source)

    def _wants(self, name: str) -> bool:
        later = tuple(f"{_layer_name(s)}." for s in STAGES if s > self.out_stages[-1])
        return not _NOT_BACKBONE.match(name) and not name.startswith(later)

    def _freeze(self, freeze_at: int) -> None:
        frozen = ["conv1", "bn1"] if freeze_at >= 1 else []
        frozen += [_layer_name(s) for s in STAGES if s <= min(freeze_at, self.out_stages[-1])]
        for name in frozen:
            setattr(self, name, freeze_batch_norm(getattr(self, name)).requires_grad_(False))


def _residual(block: nn.Module, x: Tensor) -> Tensor:
    """torchvision's residual block, with frozen norms folded into its convolutions."""
    skipped = x if block.downsample is None else convolve_and_normalize(*block.downsample, x)
    x = block.relu(convolve_and_normalize(block.conv1, block.bn1, x))
    x = convolve_and_normalize(block.conv2, block.bn2, x)
    if isinstance(block, Bottleneck):
        x = convolve_and_normalize(block.conv3, block.bn3, block.relu(x))
    return block.relu(x.add_(skipped))


def _layer_name(stage: int) -> str:
    return f"layer{stage - 1}"


def _check(depth: int, out_stages: tuple[int, ...], freeze_at: int, dilation: bool) -> None:
    if depth not in DEPTHS:
        raise ValueError(f"ResNet: depth must be one of {DEPTHS}, got {depth}")
    if not out_stages or list(out_stages) != sorted(set(out_stages) & set(STAGES)):
        raise ValueError(f"ResNet: out_stages must be ascending, from {STAGES}, got {out_stages}")
    if not 0 <= freeze_at <= 5:
        raise ValueError(f"ResNet: freeze_at must be between 0 and 5, got {freeze_at}")
    if dilation and depth < 50:
        raise ValueError(f"ResNet: dilation needs depth 50 or 101, got {depth}")
