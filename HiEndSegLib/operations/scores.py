"""Class scores at the model's spacing, summed over tiles; read back layer by layer, normalised."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from .tiling import overlap_slices


class ScoreGrid:
    """Weighted sums of scores over the box [low, high) of the model lattice.

    values: (K, *box) in `dtype`, float16 where memory is short; weight: (*box) float32.
    """

    def __init__(self, classes: int, low: Sequence[int], high: Sequence[int], *, device: torch.device | str = "cpu",
                 dtype: torch.dtype = torch.float32):
        self.low, self.high = tuple(int(v) for v in low), tuple(int(v) for v in high)
        self.shape = tuple(b - a for a, b in zip(self.low, self.high))
        self.values = torch.zeros((classes, *self.shape), device=device, dtype=dtype)
        self.weight = torch.zeros(self.shape, device=device)

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def classes(self) -> int:
        return self.values.shape[0]

    def add(self, scores: Tensor, start: Sequence[int], weights: Tensor) -> None:
        """Add one tile's scores (K, *tile), weighted by (*tile); what lies outside the box is dropped.

        All memory is taken before the first number is written, so that a failed call can be repeated.
        """
        shared = overlap_slices(start, scores.shape[1:], self.low, self.high)
        if shared is None:
            return
        inside, target = shared
        part = scores[(slice(None), *inside)].to(self.device, self.values.dtype)
        share = weights[inside].to(self.device)
        values, share_typed = self.values[(slice(None), *target)], share.to(self.values.dtype)
        values.addcmul_(part, share_typed)
        self.weight[target].add_(share)

    def move(self, device: torch.device | str) -> None:
        """To another device; on failure everything stays where it was."""
        values, weight = self.values.to(device), self.weight.to(device)
        self.values, self.weight = values, weight

    def layers(self, axis: int, first: int, last: int, keep: Tensor) -> Tensor:
        """Layers first..last-1 along `axis` as (n, A, B, K) float32, A and B the other axes in order; sum 1 over K.

        keep: (*box) bool on the same device; elsewhere, and where no tile reached, everything is background.
        """
        source = self.values.movedim(axis + 1, 1)[:, first:last].permute(1, 2, 3, 0)
        values = torch.empty(source.shape, device=self.device)          # always a copy, it is changed below
        values.copy_(source)
        weight = self.weight.movedim(axis, 0)[first:last]
        keep = keep.movedim(axis, 0)[first:last] & (weight > 0)
        values /= torch.where(keep, weight, torch.ones_like(weight))[..., None]
        values[~keep] = torch.eye(1, self.classes, device=self.device)
        return values

