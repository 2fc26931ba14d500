"""Where tiles lie and how much each of their voxels counts (numpy only).

Own code instead of MONAI's `sliding_window_inference`: that one keeps the classes of the whole image in one tensor on
one device, places tiles over air, cannot be cancelled between tiles and cannot step down when memory runs out.
"""

from __future__ import annotations

import math
from typing import Sequence

import numpy as np

from ..geometry.curve import Curve, apply_curve

Index = tuple[int, int, int]


def tile_starts(low: Sequence[int], high: Sequence[int], shape: Sequence[int], tile: Sequence[int],
                overlap: float) -> list[Index]:
    """First voxels of the tiles that cover [low, high) of a volume of `shape`; neighbours share >= `overlap`.

    A tile larger than the box is centred on it and stays inside the volume where it can. Along an axis shorter than
    the tile the start is negative: the tile hangs over evenly on both sides and is padded there.
    """
    axes = [_axis_starts(int(a), int(b), int(n), int(t), overlap) for a, b, n, t in zip(low, high, shape, tile)]
    return [(i, j, k) for i in axes[0] for j in axes[1] for k in axes[2]]


def _axis_starts(low: int, high: int, size: int, tile: int, overlap: float) -> list[int]:
    if size <= tile:
        return [-((tile - size) // 2)]
    length = high - low
    if length <= tile:
        return [min(max(low - (tile - length) // 2, 0), size - tile)]
    step = max(1.0, tile * (1.0 - overlap))
    count = math.ceil((length - tile) / step - 1e-9) + 1
    return [low + round(x) for x in np.linspace(0, length - tile, count)]


def overlap_slices(start: Sequence[int], tile: Sequence[int], low: Sequence[int],
                   high: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """What a tile and the box [low, high) share: (slices into the tile, slices into the box), None if nothing."""
    inner, outer = [], []
    for s, t, a, b in zip(start, tile, low, high):
        first, last = max(s, a), min(s + t, b)
        if first >= last:
            return None
        inner.append(slice(first - s, last - s))
        outer.append(slice(first - a, last - a))
    return tuple(inner), tuple(outer)


def gaussian_weights(tile: Sequence[int], sigma: float = 0.125, floor: float = 1e-3) -> np.ndarray:
    """(I, J, K) float32, 1 in the middle; sigma as a share of the edge (nnU-Net's 1/8, arXiv 1904.08128).

    Never below `floor`, so that a corner which only one tile covers survives half precision.
    """
    axes = [np.exp(-0.5 * ((np.arange(t) - (t - 1) / 2) / (sigma * t)) ** 2) for t in tile]
    weights = axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :]
    return np.maximum(weights / weights.max(), floor).astype(np.float32)


def cut_tile(volume: np.ndarray, start: Sequence[int], tile: Sequence[int],
             windows: Sequence[Sequence[float]], curve: Curve = ()) -> np.ndarray:
    """(C, *tile) float32 in [0, 1]: channel c is clip(HU, windows[c]) scaled; outside the volume is air, that is 0.

    curve: of the model's grey values, see `geometry.curve`.
    """
    result = np.zeros((len(windows), *tile), dtype=np.float32)
    shared = overlap_slices(start, tile, (0, 0, 0), volume.shape)
    if shared is None:
        return result
    inside, source = shared
    hu = apply_curve(volume[source], curve)
    for channel, (low, high) in zip(result, windows):
        target = channel[inside]
        np.clip(hu, low, high, out=target)
        target -= np.float32(low)
        target /= np.float32(high - low)
    return result
