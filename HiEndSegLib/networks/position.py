"""Positions of the cells of a 3D token grid: the fixed sine-cosine table and its resampling.

Tokens are flattened with the first axis slowest and the third fastest, as everywhere in this library.
Hi-End-MAE (arXiv 2502.08347) uses the raw integer coordinates, not coordinates scaled by the grid's size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_position_3d(grid: int | Sequence[int], embed_dim: int, temperature: float = 10000.0) -> Tensor:
    """Fixed position table of a token grid (arXiv 2502.08347, encoder and decoder alike).

    With ``n = embed_dim / 6`` and ``f_k = temperature ** (-k / n)`` the row of the cell (i, j, l) is
    ``[sin(i f), cos(i f), sin(j f), cos(j f), sin(l f), cos(l f)]``, six pieces of length n.

    Args:
        grid: cells along each axis, ``(g1, g2, g3)`` or one number for a cube.
        embed_dim: width D of the table, a multiple of 6.

    Returns:
        float32 ``(1, g1 * g2 * g3, D)``. It lives on the CPU even while a network is built on the meta device,
        because a fixed table is not part of any checkpoint and could not be filled in later.

    Raises:
        ValueError: the width is not a multiple of 6.
    """
    grid = as_triple(grid)
    if embed_dim < 6 or embed_dim % 6:
        raise ValueError(f"a 3D sine-cosine position table needs a width that is a multiple of 6, not {embed_dim}; "
                         f"take {max(6, round(embed_dim / 6) * 6)} or a learned table")
    pieces = embed_dim // 6
    # float64, so that large coordinates lose nothing before the sine.
    frequency = temperature ** (-torch.arange(pieces, dtype=torch.float64, device="cpu") / pieces)
    axes = [torch.arange(size, dtype=torch.float64, device="cpu") for size in grid]
    parts = []
    for coordinate in torch.meshgrid(*axes, indexing="ij"):
        angle = coordinate.reshape(-1, 1) * frequency  # (N, n)
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts, dim=1).float()[None]


def resize_position(table: Tensor, old_grid: int | Sequence[int], new_grid: int | Sequence[int]) -> Tensor:
    """Trilinear resampling of a (learned) position table to another grid over the same field of view.

    Args:
        table: ``(1, N_old, D)`` without a cls row.

    Returns:
        ``(1, N_new, D)`` in the table's dtype; the table itself when the grids are equal.

    Raises:
        ValueError: the table does not have one row per cell of ``old_grid``.
    """
    old_grid, new_grid = as_triple(old_grid), as_triple(new_grid)
    cells = old_grid[0] * old_grid[1] * old_grid[2]
    if table.dim() != 3 or table.shape[0] != 1 or table.shape[1] != cells:
        raise ValueError(f"a position table for the grid {old_grid} has the shape (1, {cells}, width), "
                         f"not {tuple(table.shape)}")
    if old_grid == new_grid:
        return table
    volume = table.float().transpose(1, 2).reshape(1, -1, *old_grid)  # (1, D, g1, g2, g3)
    volume = F.interpolate(volume, size=new_grid, mode="trilinear", align_corners=False)
    return volume.flatten(2).transpose(1, 2).to(table.dtype)


def as_triple(value: int | Sequence[int]) -> tuple[int, int, int]:
    """One number per axis: ``8`` or ``(8, 8, 6)`` -> a tuple of three ints."""
    if isinstance(value, int):
        return (value, value, value)
    triple = tuple(int(v) for v in value)
    if len(triple) != 3:
        raise ValueError(f"a size in 3D is one number or three, not {len(triple)}: {list(triple)}")
    return triple
