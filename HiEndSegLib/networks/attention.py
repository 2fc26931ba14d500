"""Multi-head attention, once fused and once with the softmax in the open.

The fused kernel never builds the attention map, so it is the default; the explicit form exists for the blocks
(and the query rows) under inspection. A test holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def split_qkv(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """``(B, N, 3 D)`` laid out as [q | k | v], each [head 0, head 1, ...] -> three of ``(B, H, N, D / H)``."""
    batch, tokens, width = qkv.shape
    q, k, v = qkv.view(batch, tokens, 3, num_heads, width // (3 * num_heads)).permute(2, 0, 3, 1, 4)
    return q, k, v


def merge_heads(x: Tensor) -> Tensor:
    """``(B, H, N, d)`` -> ``(B, N, H d)``."""
    return x.transpose(1, 2).flatten(2)


def fused_attention(qkv: Tensor, num_heads: int) -> Tensor:
    """Self-attention from the fused projection ``(B, N, 3 D)`` -> ``(B, N, D)``, before the output projection."""
    q, k, v = split_qkv(qkv, num_heads)
    return merge_heads(F.scaled_dot_product_attention(q, k, v))


def fused_cross_attention(q: Tensor, kv: Tensor, num_heads: int) -> Tensor:
    """Attention of ``q (B, N, D)`` to other tokens' ``kv (B, S, 2 D)``, laid out [k | v] -> ``(B, N, D)``."""
    batch, tokens, width = q.shape
    q = q.view(batch, tokens, num_heads, width // num_heads).transpose(1, 2)
    k, v = kv.view(batch, kv.shape[1], 2, num_heads, width // num_heads).permute(2, 0, 3, 1, 4)
    return merge_heads(F.scaled_dot_product_attention(q, k, v))


def softmax_rows(qkv: Tensor, num_heads: int, rows: Sequence[int] | Tensor | None = None) -> Tensor:
    """The softmax map ``softmax(q k^T / sqrt(d))`` of all or some query rows.

    Args:
        qkv: ``(B, N, 3 D)``.
        rows: token indices of the wanted queries; None for all.

    Returns:
        float32 ``(B, H, R, N)``; every row sums to 1. Float32 also under half precision, since a map that is shown
        or compared should not carry rounding of the network's precision twice.
    """
    q, k, _ = split_qkv(qkv, num_heads)
    if rows is not None:
        q = q[:, :, torch.as_tensor(rows, dtype=torch.long, device=q.device).reshape(-1)]
    logits = (q.float() * q.shape[-1] ** -0.5) @ k.float().transpose(-2, -1)
    return logits.softmax(dim=-1)
