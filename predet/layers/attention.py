"""Multi-head attention with the parameter layout of the published DETR weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from predet.layers.checkpointing import run_block
from predet.ops.dropout import draws_cheaply, dropout


class MultiHeadAttention(nn.Module):
    """Softmax attention (Vaswani et al., 2017) on fused kernels, batch first.

    Parameters are named and shaped as in `nn.MultiheadAttention` (`in_proj_weight` holds the query,
    key and value projections), so its state dicts load unchanged. What differs: masks are True
    where attention is *blocked*, everywhere in predet; no weights are returned.

    Args:
        hidden_dim: channels.
        num_heads: heads; must divide hidden_dim.
        dropout: probability of dropping an attention weight in training.
    """

    def __init__(self, *, hidden_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if hidden_dim % num_heads != 0:
            raise ValueError(
                f"MultiHeadAttention: num_heads must divide hidden_dim, got {num_heads} heads "
                f"and hidden_dim {hidden_dim}"
            )
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden_dim, hidden_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden_dim))
        self.out_proj = nn.Linear(hidden_dim, hidden_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        pad_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from `query` to `key`.

        Args:
            query: (B, N, D).
            key: (B, M, D).
            value: (B, M, D).
            pad_mask: (B, M) bool, True = padding, seen by no query. Each image keeps at least
                one key.
            attention_mask: (N, M), (B, N, M) or (B, H, N, M); bool, True = blocked, or float,
                added to the attention logits. Each query keeps at least one key.

        Returns:
            (B, N, D).
        """
        q, k, v = self._project(query, key, value)
        mask = _merge_masks(pad_mask, attention_mask, q.dtype)
        mixed = _attend(q, k, v, mask, self.dropout if self.training else 0.0)  # (B, H, N, C)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        D = self.hidden_dim
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if query is key:  # self-attention: one matrix product for both
            q, k = F.linear(query, weight[: 2 * D], bias[: 2 * D]).chunk(2, dim=-1)
        else:
            q = F.linear(query, weight[:D], bias[:D])
            k = F.linear(key, weight[D : 2 * D], bias[D : 2 * D])
        v = F.linear(value, weight[2 * D :], bias[2 * D :])
        return tuple(x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rate: float) -> Tensor:
    """`F.scaled_dot_product_attention`, whose kernels for the CPU know no dropout."""
    if rate > 0 and draws_cheaply(q):
        # As those kernels do, keep no attention weights: there are three tensors of their size.
        return run_block(_attend_plainly, q, k, v, mask, rate, checkpointing=True)
    if q.device.type != "cpu" or q.dtype == torch.float32:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)
    # In 16 bits the backward kernel for the CPU takes as long as in 32, or up to six times that.
    with torch.autocast("cpu", enabled=False):
        mask = mask.float() if mask is not None and mask.is_floating_point() else mask
        mixed = F.scaled_dot_product_attention(
            q.float(), k.float(), v.float(), attn_mask=mask, dropout_p=rate
        )
    return mixed.to(q.dtype)


def _attend_plainly(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rate: float) -> Tensor:
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
    if mask is not None:
        logits = (
            logits.masked_fill_(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
        )
    return dropout(logits.softmax(dim=-1), rate, training=True) @ v


def _merge_masks(
    pad_mask: Tensor | None, attention_mask: Tensor | None, dtype: torch.dtype
) -> Tensor | None:
    """One mask that broadcasts to (B, H, N, M) for PyTorch: bool, True = attend, or an addend."""
    blocked = None if pad_mask is None else pad_mask[:, None, None, :]
    if attention_mask is None:
        return None if blocked is None else ~blocked
    if attention_mask.ndim == 3:
        attention_mask = attention_mask[:, None]
    if attention_mask.dtype == torch.bool:
        return ~(attention_mask if blocked is None else attention_mask | blocked)
    addend = attention_mask.to(dtype)
    return addend if blocked is None else addend.masked_fill(blocked, float("-inf"))
