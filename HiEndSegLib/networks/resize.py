"""Trilinear resizing of feature maps as one small matrix product per axis.

Linear interpolation on a lattice is separable: a banded matrix per axis. As products it runs in bfloat16 too, where
`F.interpolate` falls back to float32 under autocast. Measured on one CPU core, 16 channels from 48^3 to 96^3:
92 ms by `F.interpolate`, 18 ms by products in bfloat16; in float32 they are alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
@torch.inference_mode(False)        # kept for later calls, which may be training: no inference tensors
def linear_weights(old: int, new: int) -> Tensor:
    """(new, old) float32: row n holds the weights of sample n (voxel centres aligned by extent, edges repeated)."""
    place = ((torch.arange(new, dtype=torch.float64) + 0.5) * old / new - 0.5).clamp(0, old - 1)
    below = place.floor().long().clamp(max=max(old - 2, 0))
    part = place - below
    weights = torch.zeros(new, old, dtype=torch.float64)
    rows = torch.arange(new)
    weights[rows, below] = 1 - part
    weights[rows, (below + 1).clamp(max=old - 1)] += part
    return weights.float()


def along_axes(x: Tensor, matrices: Sequence[Tensor | None]) -> Tensor:
    """Multiply the last axes of (..., I, J, K) by one (new, old) matrix each; None leaves an axis as it is."""
    i, j, k = (None if m is None else m.to(x) for m in matrices)
    if k is not None:                         # the last axis first: it is the cheapest product and the map is smallest
        x = x @ k.transpose(0, 1)
    if j is not None:
        x = j @ x
    if i is not None:
        x = (i @ x.flatten(-2)).unflatten(-1, x.shape[-2:])
    return x


def resize_trilinear(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, I, J, K) -> (B, C, *size), as `F.interpolate(mode="trilinear", align_corners=False)`."""
    return along_axes(x, [None if old == new else linear_weights(old, new) for old, new in zip(x.shape[-3:], size)])
