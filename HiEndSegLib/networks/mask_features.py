"""Full-resolution mask features that are computed only where somebody asks.

A head multiplies its mask embeddings with one feature vector a voxel. Kept whole, those features are the largest map
of the network (16 x 96^3), and writing and reading it costs more than all of its arithmetic. Nobody needs it whole:
inference goes slab by slab, training looks at one voxel in eight, and the queries' attention masks live on coarse
maps. So `FullResolution` returns `MaskFeatures`, which knows the stride-2 map and answers each of these directly.
Measured on one core in bfloat16, 96^3, 20 classes: 257 ms for whole features and their scores, 80 ms by slabs.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pyramid import depth_to_space
from .resize import along_axes, linear_weights


class FullResolution(nn.Module):
    """Stride-2 map (B, C, I/2, ...) -> `MaskFeatures` with `out` channels at (I, J, K).

    A smooth part (interpolated) that every voxel trains, and a sub-pixel part (arXiv 1609.05158) for the detail within
    a 2x2x2 block, which starts at zero so that no block pattern has to be unlearned.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.out_channels = out_channels
        self.smooth = nn.Conv3d(in_channels, out_channels, 1)
        self.detail = nn.Conv3d(in_channels, 8 * out_channels, 1)
        nn.init.zeros_(self.detail.weight)
        nn.init.zeros_(self.detail.bias)

    def forward(self, x: Tensor) -> MaskFeatures:
        return MaskFeatures(self, x)


class MaskFeatures:
    """Features (B, d, I, J, K) over a stride-2 map, whole or in part; the same numbers either way."""

    def __init__(self, layer: FullResolution, coarse: Tensor):
        self._coarse = coarse
        self._out_channels = layer.out_channels
        # In the map's precision: parts are asked for after autocast has ended, too.
        self._smooth, self._detail = (
            tuple(p.to(coarse.dtype) for p in (part.weight.flatten(1), part.bias))
            for part in (layer.smooth, layer.detail))

    def sample(self, row: int) -> MaskFeatures:
        """One sample's features, as a batch of one."""
        one = copy.copy(self)
        one._coarse = self._coarse[row:row + 1]
        return one

    @property
    def channels(self) -> int:
        return self._out_channels

    @property
    def size(self) -> tuple[int, int, int]:
        return tuple(2 * n for n in self._coarse.shape[2:])

    def full(self) -> Tensor:
        """(B, d, I, J, K)."""
        return self.slab(0, self._coarse.shape[2])

    def slab(self, first: int, last: int) -> Tensor:
        """Layers [2 first, 2 last) along i: (B, d, 2 (last - first), J, K)."""
        size = self._coarse.shape[2:]
        low, high = max(first - 1, 0), min(last + 1, size[0])
        smooth = _pointwise(self._coarse[:, :, low:high], *self._smooth)
        rows = linear_weights(size[0], 2 * size[0])[2 * first:2 * last, low:high]
        smooth = along_axes(smooth, (rows, *(linear_weights(n, 2 * n) for n in size[1:])))
        return smooth + depth_to_space(_pointwise(self._coarse[:, :, first:last], *self._detail))

    def at(self, i: Tensor, j: Tensor, k: Tensor) -> Tensor:
        """Features on the sublattice of full-resolution indices i x j x k, (B, d, len(i), len(j), len(k))."""
        size = self._coarse.shape[2:]
        smooth = _pointwise(self._coarse, *self._smooth)
        smooth = along_axes(smooth, [linear_weights(n, 2 * n)[index.cpu()] for n, index in zip(size, (i, j, k))])
        # Within one parity of each axis the detail is one pointwise layer: sort by parity, join, sort back.
        orders = [torch.cat([torch.nonzero(index % 2 == parity)[:, 0] for parity in (0, 1)]) for index in (i, j, k)]
        evens = [int((index % 2 == 0).sum()) for index in (i, j, k)]
        sorted_coarse = self._coarse
        for axis, (index, order) in enumerate(zip((i, j, k), orders)):
            sorted_coarse = sorted_coarse.index_select(2 + axis, (index[order] // 2).to(sorted_coarse.device))
        detail = self._by_parity(sorted_coarse, evens, 0, 0)
        for axis, order in enumerate(orders):
            detail = detail.index_select(2 + axis, order.argsort().to(detail.device))
        return smooth + detail

    def _by_parity(self, x: Tensor, evens: list[int], axis: int, position: int) -> Tensor:
        if axis == 3:
            weight, bias = self._detail_by_position()
            return _pointwise(x, weight[position], bias[position])
        even, odd = x.split([evens[axis], x.shape[2 + axis] - evens[axis]], 2 + axis)
        return torch.cat([self._by_parity(even, evens, axis + 1, 2 * position),
                          self._by_parity(odd, evens, axis + 1, 2 * position + 1)], 2 + axis)

    def _detail_by_position(self) -> tuple[Tensor, Tensor]:
        """Views (8, d, C) and (8, d): one pointwise layer per position within the 2x2x2 block, k fastest."""
        return tuple(p.unflatten(0, (self._out_channels, 8)).transpose(0, 1) for p in self._detail)

    @torch.no_grad()
    def pooled(self, size: tuple[int, int, int]) -> Tensor:
        """Averages of the full features over the blocks of a coarser lattice, (B, d, *size); no gradient."""
        x = self._coarse.detach()
        if any(n % s for n, s in zip(x.shape[2:], size)):
            return F.adaptive_avg_pool3d(self.full().float(), size)
        # The mean over a block commutes with the pointwise layers, so the map is pooled before them. For the smooth
        # part the mean of both fine samples of a coarse voxel is itself a row of weights.
        pool = [_mean_rows(n, s) for n, s in zip(x.shape[2:], size)]
        blur = [m @ _mean_rows(2 * n, n) @ linear_weights(n, 2 * n) for m, n in zip(pool, x.shape[2:])]
        smooth = _pointwise(along_axes(x, blur), *self._smooth)
        detail = _pointwise(along_axes(x, pool), *(p.mean(0) for p in self._detail_by_position()))
        return smooth + detail


@torch.no_grad()
def _mean_rows(old: int, new: int) -> Tensor:
    """(new, old): the average over equal runs of old / new samples."""
    return torch.eye(new).repeat_interleave(old // new, 1) / (old // new)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 1x1x1 convolution as a product, (B, C, ...) -> (B, O, ...): 5 to 10 times as fast in bfloat16 on a CPU."""
    out = torch.baddbmm(bias[None, :, None], weight.expand(x.shape[0], -1, -1), x.flatten(2))
    return out.unflatten(2, x.shape[2:])
