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
    return attention_rows(q, k)


def attention_rows(q: Tensor, k: Tensor, allowed: Tensor | None = None) -> Tensor:
    """``softmax(q k^T / sqrt(d))`` in the open, for the queries that are given and no others.

    Args:
        q: ``(..., R, d)``; k: ``(..., N, d)``.
        allowed: bool, broadcast to ``(..., R, N)``; elsewhere the weight is 0. Every row needs one True.

    Returns:
        float32 ``(..., R, N)``; every row sums to 1.
    """
    logits = (q.float() * q.shape[-1] ** -0.5) @ k.float().transpose(-2, -1)
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    return logits.softmax(dim=-1)


def carried_back(shares: Tensor, q: Tensor, k: Tensor, *, rows: int = 128) -> Tensor:
    """``shares @ A`` with A the mean of the heads' attention maps, without ever holding A.

    One step of attention rollout (arXiv 2005.00928) for a single row: shares ``(N,)`` over the block's outputs become
    shares ``(N,)`` over its inputs. `rows` of every head's map are in memory at a time.

    Args:
        q, k: ``(H, N, d)``.
    """
    result = torch.zeros(k.shape[1], dtype=torch.float32, device=k.device)
    wanted = torch.nonzero(shares).squeeze(1)             # the first step of a rollout has one row
    for some in wanted.split(rows):
        result += shares[some].float() @ attention_rows(q[:, some], k).mean(0)
    return result
