"""Augmented crops of the taught cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np
import torch
from torch import Tensor

from ..geometry.curve import apply_curve
from ..models.card import ModelCard
from ..networks.stages import Stages
from .adapt_case import Case
from .augment import keep_inside, random_grid, sample_codes, sample_image, vary_hounsfield, vary_native, vary_structures

AIR_HU = -1024.0


@dataclass
class Crop:
    """x: (C, *size) in [0, 1]. drawn: (*size) uint8, `Case.targets`. case: where it comes from. offset: which voxels of
    it the loss looks at (`objective.wandering`)."""

    x: Tensor
    drawn: Tensor
    case: Case
    offset: tuple[int, int, int]


class CropSampler:
    """Draws crops, every other one centered on a taught structure (its non-held-out voxels), else anywhere in the body.

    No flips: left and right are labels.
    """

    def __init__(self, cases: Sequence[Case], card: ModelCard, size: Sequence[int], seed: int, *, spread: float = 30.0,
                 bend: float = 0.7, scale: float = 0.14):
        self.spread, self.bend, self.scale = spread, bend, scale
        self.cases, self.card, self.size = list(cases), card, tuple(size)
        self.rng = np.random.default_rng(seed)
        weights = np.array([case.weight for case in self.cases], dtype=float)
        self.weights = weights / weights.sum()
        self.count = 0

    def place(self) -> tuple[Tensor, Tensor, Case, Tensor]:
        """A crop before its grey values are touched: image, drawing, case, and the grid it was sampled by."""
        rng = self.rng
        case = self.cases[rng.choice(len(self.cases), p=self.weights)]
        lattice, size = case.lattice, np.array(self.size)
        foreground = self.count % 2 == 0 and case.centres
        self.count += 1
        if foreground:
            voxels = case.centres[list(case.centres)[rng.integers(len(case.centres))]]
            centre = voxels[rng.integers(len(voxels))] + rng.uniform(-size / 4, size / 4)
        else:
            centre = rng.uniform(lattice.low, lattice.high)
        shape = lattice.image.shape
        grid = random_grid(rng, keep_inside(centre, shape, size), shape, self.size, bend=self.bend, scale=self.scale)
        outside = AIR_HU if lattice.is_hu else min(low for low, _ in self.card.windows)
        image = sample_image(lattice.image, grid, outside)
        drawn = sample_codes(case.targets, grid).to(torch.uint8)            # beyond the volume: nothing is drawn
        return image, drawn, case, grid

    def offset(self) -> tuple[int, int, int]:
        """Which voxels of a crop the loss looks at (`objective.wandering`)."""
        return tuple(int(o) for o in self.rng.integers(0, 2, 3))

    def draw(self) -> Crop:
        image, drawn, case, grid = self.place()
        rng, lattice = self.rng, case.lattice
        image = torch.from_numpy(apply_curve(image.numpy(), self.card.curve))
        if self.spread and rng.random() < 0.7:
            width = 1.0 if lattice.is_hu else max(high - low for low, high in self.card.windows) / 400
            image = vary_structures(image, sample_codes(case.structures, grid), rng, self.spread * width)
        if lattice.is_hu:
            image = vary_hounsfield(image, rng)
        else:
            image = vary_native(image, rng, max(high - low for low, high in self.card.windows))
        return Crop(in_windows(image, self.card.windows), drawn, case, self.offset())


def in_windows(image: Tensor, windows: Sequence[Sequence[float]]) -> Tensor:
    """(I, J, K) -> (C, I, J, K) in [0, 1], as `tiling.cut_tile` gives it."""
    return torch.stack([((image - low) / (high - low)).clamp(0, 1) for low, high in windows])


def crop_size(card: ModelCard, stages: Stages, wanted: int) -> tuple[int, int, int]:
    """Edges of training crops: the card's tile, or less where the network takes any multiple of its step."""
    if stages.size_step is None:
        return card.tile
    step = stages.size_step
    return tuple(max(step, min(wanted, edge) // step * step) for edge in card.tile)
