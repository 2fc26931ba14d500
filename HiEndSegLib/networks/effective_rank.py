"""How many directions a matrix really uses: effective rank (Roy & Vetterli 2007) of attention values.

The Hi-End-MAE paper (arXiv 2502.08347) compares pre-trainings by it, layer by layer. It leaves open whether the heads
are taken together and whether the cls token counts; here both are options, by default together and with cls.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from HiEndSegLib.networks.vit import VisionTransformer3D


def singular_values(matrix: Tensor) -> Tensor:
    """``(..., m, n)`` -> ``(..., min(m, n))``, float64, largest first.

    Half and single precision are widened first: small singular values, many together, would drown in rounding.
    """
    return torch.linalg.svdvals(matrix.double())


def effective_rank(matrix: Tensor) -> Tensor:
    """exp of the entropy (natural logarithm) of the singular values as shares of their sum.

    Args:
        matrix: ``(..., m, n)``.

    Returns:
        float64 ``(...)``, from 1 (one direction) to ``min(m, n)`` (all alike); 0 for a matrix of zeros.
    """
    return rank_of_spectrum(singular_values(matrix))


def rank_of_spectrum(values: Tensor) -> Tensor:
    """`effective_rank` from singular values ``(..., r)`` already at hand."""
    total = values.sum(dim=-1, keepdim=True)
    shares = values / total.clamp(min=torch.finfo(values.dtype).tiny)
    entropy = torch.special.entr(shares).sum(dim=-1)  # -q ln q, and 0 for q = 0
    return torch.where(total[..., 0] > 0, entropy.exp(), 0.0)


@torch.no_grad()
def value_matrices(encoder: VisionTransformer3D, x: Tensor, positions: Tensor | None = None, *,
                   per_head: bool = False, keep_cls: bool = True) -> list[Tensor]:
    """The attention values V of every layer, for whole crops or for the visible patches of a masked run.

    Args:
        x: ``(B, C, I, J, K)``; or, with ``positions``, patches and their places as in ``encoder.forward_tokens``.
        per_head: one matrix per head instead of all heads side by side.
        keep_cls: with the row of the cls token, if the encoder has one.

    Returns:
        per block ``(B, tokens, D)``, or ``(B, heads, tokens, D / heads)``.
    """
    tokens = encoder.embed(x) if positions is None else encoder.embed_some(x, positions)
    first = 0 if keep_cls or encoder.cls_token is None else 1
    width, matrices = encoder.embed_dim, []
    for block in encoder.blocks:
        qkv = block.attn.qkv
        bias = None if qkv.bias is None else qkv.bias[2 * width:]
        values = F.linear(block.norm1(tokens)[:, first:], qkv.weight[2 * width:], bias)
        matrices.append(values.unflatten(2, (encoder.num_heads, -1)).transpose(1, 2) if per_head else values)
        tokens = block(tokens)
    return matrices
