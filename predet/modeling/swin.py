"""Swin Transformer as a backbone of detectors (Liu et al., ICCV 2021; sizes as in H-DETR).

The parts (window attention, patch merging, MLP, drop path, initial values) are timm's; how a map
of any size is cut into windows is ours. timm shifts a map before it pads it to whole windows, so
that at other sizes than those of classification pixels of opposite borders see each other and the
weights of published detectors give other features; here padding comes first (docs/decisions/0009).

Legend: B batch, H and W of a map, C channels, W x W pixels of a window, N windows of a map.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from predet.layers.checkpointing import run_block
from predet.modeling.timm_extra import PREFIX, known_name, require_timm
from predet.modeling.weights import (
    depths_by_prefix,
    load_whole,
    read_state_dict,
    refuse_random_frozen,
)

logger = logging.getLogger(__name__)

STAGES = (2, 3, 4, 5)
PATCH = 4  # pixels of a side, the stride of the first stage
BLOCKED = -100.0  # added to logits between parts of a map that only the shift has brought together

# Of classification files: the classifier, its norm, and buffers that follow from the sizes.
_NOT_BACKBONE = re.compile(r"(norm|head)\.|.*\.(attn_mask|relative_position_index)$")


class Swin(nn.Module):
    """Swin Transformer with a layer normalisation of its own for each returned map.

    Stages are counted as in `ResNet`: 1 is the patch embedding, stages 2 to 5 have strides 4, 8,
    16 and 32. Images of any size are taken.

    Args:
        weights: None starts from random; "timm:NAME" downloads timm's weights of that name;
            anything else is the path of a classification checkpoint in timm's or the published
            names. Norms of the returned maps are in none of them and start fresh. Tables of
            relative positions of another window size are resized.
        embed_dim: channels of stage 2; each stage doubles them. 96 for Swin-T, 192 for Swin-L.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        window_size: pixels of a window's side.
        drop_path: probability of dropping the last block's branches; it grows linearly from 0 at
            the first block.
        freeze_at: the first `freeze_at` stages are not trained and drop nothing; 0 = all are.
        out_stages: whose maps are returned, ascending. Stages after the last are not built.
        checkpointing: compute the activations of a block again in the backward pass.
        allow_random_frozen: as of `ResNet`.
    """

    def __init__(
        self,
        *,
        weights: str | None,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        drop_path: float = 0.2,
        freeze_at: int = 0,
        out_stages: Sequence[int] = (3, 4, 5),
        checkpointing: bool = False,
        allow_random_frozen: bool = False,
    ) -> None:
        super().__init__()
        out_stages = tuple(out_stages)
        _check(embed_dim, depths, num_heads, window_size, drop_path, freeze_at, out_stages)
        if weights is None and not allow_random_frozen:
            refuse_random_frozen("Swin", frozen_norm=False, freeze_at=freeze_at, remedy="")
        self.window_size = window_size
        self.freeze_at = freeze_at
        self.out_stages = out_stages
        self.checkpointing = checkpointing
        self.pretrained = weights is not None
        self.channels = tuple(embed_dim * 2 ** (stage - 2) for stage in out_stages)
        self.strides = tuple(2**stage for stage in out_stages)
        network = _timm_network(
            embed_dim=embed_dim,
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            window_size=window_size,
            drop_path_rate=drop_path,
        )
        self.patch_embed = network.patch_embed
        self.layers = network.layers[: out_stages[-1] - 1]
        self.output_norms = nn.ModuleDict(
            {f"stage{s}": nn.LayerNorm(c) for s, c in zip(out_stages, self.channels, strict=True)}
        )
        if weights is not None:
            self._load(weights)
        for module in self._frozen():
            module.requires_grad_(False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) normalised -> one (B, channels[i], H / strides[i], W / strides[i]) each.

        Sizes are rounded up at each stage. Maps are channels-last in memory.
        """
        x = self._embed(pixels)  # (B, H / 4, W / 4, C)
        maps = []
        for stage, layer in enumerate(self.layers, STAGES[0]):
            x = layer.downsample(x)
            shift = self.window_size // 2
            blocked = blocked_pairs(x.shape[1], x.shape[2], self.window_size, shift, x.device)
            for index, block in enumerate(layer.blocks):
                x = run_block(
                    _run_swin_block,
                    block,
                    x,
                    self.window_size,
                    shift if index % 2 else 0,
                    blocked if index % 2 else None,
                    checkpointing=self.checkpointing,
                )
            if stage in self.out_stages:
                maps.append(self.output_norms[f"stage{stage}"](x).permute(0, 3, 1, 2))
        return tuple(maps)

    def train(self, mode: bool = True) -> Swin:
        """As usual, but frozen stages drop nothing."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def layer_depths(self) -> dict[str, int]:
        """How deep each parameter lies: 0 is the patch embedding, then one more for each block.

        Patch merging belongs to the block after it; the norms of the maps come last.
        """
        prefixes = []
        for stage, layer in enumerate(self.layers):
            prefixes += [f"layers.{stage}.blocks.{index}." for index in range(len(layer.blocks))]
        depths = depths_by_prefix(self, [*prefixes, "output_norms."])
        for stage in range(1, len(self.layers)):
            first = depths[f"layers.{stage}.blocks.0.norm1.weight"]
            for name in depths:
                if name.startswith(f"layers.{stage}.downsample."):
                    depths[name] = first
        return depths

    def _embed(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H / 4, W / 4, C), zeros added at the right and the bottom."""
        height, width = pixels.shape[-2:]
        pixels = F.pad(pixels, (0, -width % PATCH, 0, -height % PATCH))
        return self.patch_embed.norm(self.patch_embed.proj(pixels).permute(0, 2, 3, 1))

    def _frozen(self) -> list[nn.Module]:
        stages = [self.patch_embed, *self.layers]
        return stages[: self.freeze_at]

    def _load(self, weights: str) -> None:
        if weights.startswith(PREFIX):
            timm = require_timm("Swin with weights of timm")
            name = known_name(timm, weights.removeprefix(PREFIX))
            state = timm.create_model(name, pretrained=True).state_dict()
        else:
            state = read_state_dict(weights, instead="None, 'timm:NAME'")
        state = to_own_names(state, last_stage=self.out_stages[-1])
        own = self.state_dict()
        state = {
            name: _resized_table(tensor, own[name].shape)
            if name.endswith("relative_position_bias_table") and name in own
            else tensor
            for name, tensor in state.items()
        }
        fresh = {name for name in own if name.startswith("output_norms.")}
        load_whole(self, state, what=f"{weights} do not fit this Swin", optional=fresh)
        logger.info("backbone: %d tensors from %s", len(state), weights)


def to_own_names(state: Mapping[str, Tensor], *, last_stage: int = STAGES[-1]) -> dict[str, Tensor]:
    """Tensors of a Swin classifier or published detection backbone by the names of `Swin`.

    timm merges patches at the start of a stage, as we do; the published files at the end of the
    stage before. The classifier and stages after `last_stage` are left out.
    """
    if any(name.startswith("encoder.") for name in state):  # of self-supervised training
        state = {
            n.removeprefix("encoder."): t for n, t in state.items() if n.startswith("encoder.")
        }
    published = "layers.0.downsample.reduction.weight" in state
    renamed = {}
    for name, tensor in state.items():
        if _NOT_BACKBONE.match(name):
            continue
        if published:
            name = re.sub(
                r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name
            )
        # Detection backbones have norms of the maps, counted from the first stage as 0.
        name = re.sub(r"^norm(\d)\.", lambda m: f"output_norms.stage{int(m[1]) + 2}.", name)
        layer = re.match(r"layers\.(\d)\.", name)
        if layer is None or int(layer[1]) + 2 <= last_stage:
            renamed[name] = tensor
    return renamed


def blocked_pairs(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """What is added to the attention logits of a shifted map: (N, W * W, W * W), 0 or `BLOCKED`.

    After the shift the last windows of each axis hold the far border and, in their last `shift`
    pixels, the near one: these parts do not see each other. Padding is not set apart.
    """
    axes = []
    for size in (height, width):
        padded = size + -size % window
        position = torch.arange(padded, device=device)
        axes.append((position >= padded - window).long() + (position >= padded - shift).long())
    region = 3 * axes[0][:, None] + axes[1]  # (H, W) of the padded map
    region = to_windows(region[None, :, :, None], window)[..., 0]  # (N, W * W)
    return BLOCKED * (region[:, None] != region[:, :, None]).float()


def to_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) of whole windows -> (B * N, W * W, C), windows row by row."""
    B, height, width, C = x.shape
    x = x.view(B, height // window, window, width // window, window, C)
    return x.transpose(2, 3).reshape(-1, window * window, C)


def from_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `to_windows`: (B * N, W * W, C) -> (B, height, width, C)."""
    x = x.view(-1, height // window, width // window, window, window, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, x.shape[-1])


def _run_swin_block(
    block: nn.Module, x: Tensor, window: int, shift: int, blocked: Tensor | None
) -> Tensor:
    """One block of timm on a map (B, H, W, C) of any size."""
    _, height, width, _ = x.shape
    y = F.pad(block.norm1(x), (0, 0, 0, -width % window, 0, -height % window))
    padded = y.shape[1:3]
    y = torch.roll(y, (-shift, -shift), dims=(1, 2)) if shift else y
    y = from_windows(block.attn(to_windows(y, window), mask=blocked), window, *padded)
    y = torch.roll(y, (shift, shift), dims=(1, 2)) if shift else y
    x = x + block.drop_path1(y[:, :height, :width])
    return x + block.drop_path2(block.mlp(block.norm2(x)))


def _timm_network(**sizes: object) -> nn.Module:
    require_timm("Swin")
    from timm.models.swin_transformer import SwinTransformer

    # always_partition keeps windows and tables at their size, whatever timm's default image.
    return SwinTransformer(**sizes, num_classes=0, always_partition=True, strict_img_size=False)


def _resized_table(table: Tensor, shape: Sequence[int]) -> Tensor:
    """Relative position biases ((2 * W - 1)^2, heads) for another window size, by bicubic."""
    if table.shape == shape or table.shape[1:] != shape[1:]:
        return table
    old, new = (round(rows**0.5) for rows in (table.shape[0], shape[0]))
    maps = table.t().reshape(1, -1, old, old).float()
    resized = F.interpolate(maps, size=(new, new), mode="bicubic", align_corners=False)
    return resized.reshape(-1, new * new).t().to(table.dtype)


def _check(
    embed_dim: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    window_size: int,
    drop_path: float,
    freeze_at: int,
    out_stages: tuple[int, ...],
) -> None:
    for name, values in (("depths", depths), ("num_heads", num_heads)):
        if len(values) != len(STAGES) or min(values) < 1:
            raise ValueError(f"Swin: {name} must be {len(STAGES)} numbers > 0, got {list(values)}")
    for stage, heads in zip(STAGES, num_heads, strict=True):
        width = embed_dim * 2 ** (stage - 2)
        if width % heads != 0:
            raise ValueError(
                f"Swin: the {heads} heads of stage {stage} must divide its {width} channels"
            )
    if window_size < 2:
        raise ValueError(f"Swin: window_size must be at least 2, got {window_size}")
    if not 0 <= drop_path < 1:
        raise ValueError(f"Swin: drop_path must be at least 0 and below 1, got {drop_path}")
    if not 0 <= freeze_at <= 5:
        raise ValueError(f"Swin: freeze_at must be between 0 and 5, got {freeze_at}")
    if not out_stages or list(out_stages) != sorted(set(out_stages) & set(STAGES)):
        raise ValueError(f"Swin: out_stages must be ascending, from {STAGES}, got {out_stages}")
