"""Training tiles: a prepared case, cut and deformed into what the network sees.

A prepared case is an .npz with `image` (int16 HU), `possible` (uint32 bit sets, see HiEndSegLib.networks.matching) on
an RAS+ lattice at the model's spacing, and `weight`. Tiles are resampled once, with flipping left out: left and right
are labels (see HiEndSegLib.operations.augment).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from HiEndSegLib.operations.augment import keep_inside, random_grid, sample_codes, sample_image, vary_hounsfield

AIR_HU = -1024.0


@dataclass
class Case:
    """image: (I, J, K) int16 HU. possible: (I, J, K) int32 bit sets. weight: how often it is drawn."""

    name: str
    image: np.ndarray
    possible: np.ndarray
    weight: float = 1.0

    def __post_init__(self) -> None:
        self.centres = _class_centres(self.possible)


def _class_centres(possible: np.ndarray, per_class: int = 2000) -> dict[int, np.ndarray]:
    """Up to `per_class` voxels of every certain class (background left out), for drawing tile centres."""
    centres = {}
    rng = np.random.default_rng(0)
    for v in range(1, 32):
        voxels = np.flatnonzero(possible == (1 << v))
        if len(voxels):
            chosen = rng.choice(voxels, min(per_class, len(voxels)), replace=False)
            centres[v] = np.stack(np.unravel_index(chosen, possible.shape), 1)
    return centres


def load_cases(folder: Path) -> list[Case]:
    """Every .npz directly inside `folder`, sorted by name."""
    cases = []
    for path in sorted(Path(folder).glob("*.npz")):
        with np.load(path, allow_pickle=False) as data:
            cases.append(Case(path.stem, data["image"].astype(np.int16), data["possible"].astype(np.int32),
                              float(data["weight"]) if "weight" in data else 1.0))
    if not cases:
        raise FileNotFoundError(f"There is no prepared case in {folder}; run training.cases and training.synthesis.")
    return cases


class TileSampler:
    """Draws augmented tiles. windows: the card's intensity windows, one input channel each."""

    def __init__(self, cases: list[Case], windows: list[list[float]], *, size: int = 96, seed: int = 0):
        self.cases, self.windows, self.size = cases, windows, size
        self.rng = np.random.default_rng(seed)

    def draw(self) -> tuple[Tensor, Tensor, str]:
        """One tile: input (C, S, S, S) in [0, 1], possible (S, S, S) int64, the case's name."""
        weights = np.array([c.weight for c in self.cases])
        case = self.cases[self.rng.choice(len(self.cases), p=weights / weights.sum())]
        grid = self._grid(case)
        image = sample_image(case.image, grid, AIR_HU)
        bits = sample_codes(case.possible, grid, outside=1)          # "background, certainly" beyond the volume
        image, bits = self._add_fluid(image, bits)
        image, bits = self._crop_field_of_view(image, bits)
        image = self._intensity(image)
        channels = [((image - lo) / (hi - lo)).clamp(0, 1) for lo, hi in self.windows]
        return torch.stack(channels), bits, case.name

    def _grid(self, case: Case) -> Tensor:
        """Sampling grid (1, S, S, S, 3) for grid_sample on the case's array (align_corners convention)."""
        rng, s = self.rng, self.size
        shape = np.array(case.image.shape, float)
        if case.centres and rng.random() < 0.6:
            voxels = case.centres[rng.choice(list(case.centres))]
            centre = voxels[rng.integers(len(voxels))] + rng.uniform(-s / 3, s / 3, 3)
        else:
            centre = rng.uniform(0, 1, 3) * shape
        return random_grid(rng, keep_inside(centre, shape, s), shape, s)

    def _add_fluid(self, image: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
        """Sometimes disease: a large cystic mass in place of bowel and fat, or free fluid in place of fat.

        Only voxels whose class is certain change, and they become background. Without it a mass the size of a liver is
        called liver, and fluid around the spleen is called spleen.
        """
        rng, s = self.rng, self.size
        soft = (image > -250) & (image < 300)
        if rng.random() < 0.4:
            replaceable = soft & torch.isin(bits, torch.tensor([1 << v for v in (0, 9, 10, 11)]))
            inside = self._ellipsoid(rng.uniform(10 if rng.random() < 0.5 else 25, 48, 3))
            where = inside & replaceable
            if where.sum() > 2000:
                lumps = F.interpolate(torch.from_numpy(rng.normal(0, rng.uniform(0, 18), (1, 1, 6, 6, 6))).float(),
                                      size=(s, s, s), mode="trilinear", align_corners=True)[0, 0]
                image = torch.where(where, float(rng.uniform(-5, 60)) + lumps + image * 0.05, image)
                bits = torch.where(where, 1, bits)
        if rng.random() < 0.5:
            fat = (image > -160) & (image < -40) & (bits == 1)
            where = fat & self._ellipsoid(rng.uniform(15, 60, 3))
            image = torch.where(where, float(rng.uniform(-5, 30)) + 0.1 * (image + 100), image)
        if rng.random() < 0.3:
            # Fluid below the diaphragm takes the place of lung, stomach and the rims of spleen and liver.
            taken = torch.isin(bits, torch.tensor([1 << v for v in (1, 5, 6, 15, 16)]))
            where = taken & self._ellipsoid(rng.uniform(8, 25, 3))
            image = torch.where(where, float(rng.uniform(-5, 25)) + float(rng.uniform(2, 8)) * torch.from_numpy(
                rng.standard_normal(image.shape)).float(), image)
            bits = torch.where(where, 1, bits)
        return image, bits

    def _ellipsoid(self, radii: np.ndarray) -> Tensor:
        """A wavy ellipsoid anywhere in the tile, (S, S, S) bool. radii: voxels."""
        rng, s = self.rng, self.size
        line = torch.arange(s, dtype=torch.float32)
        parts = [((line - float(c)) / float(r)) ** 2 for c, r in zip(rng.uniform(0, s, 3), radii)]
        wave = F.interpolate(torch.from_numpy(rng.normal(0, 0.25, (1, 1, 5, 5, 5))).float(), size=(s, s, s),
                             mode="trilinear", align_corners=True)[0, 0]
        return parts[0][:, None, None] + parts[1][None, :, None] + parts[2][None, None, :] + wave < 1

    def _crop_field_of_view(self, image: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
        """Sometimes the scan ends inside the tile: beyond the cut is air, as padding is at inference."""
        if self.rng.random() < 0.25:
            axis = int(self.rng.choice([0, 1, 2, 2, 2, 2]))
            cut = int(self.rng.integers(8, self.size // 2))
            where = slice(0, cut) if self.rng.random() < 0.5 else slice(self.size - cut, None)
            index = tuple(where if a == axis else slice(None) for a in range(3))
            image, bits = image.clone(), bits.clone()
            image[index], bits[index] = AIR_HU, 1
        return image, bits

    def _intensity(self, image: Tensor) -> Tensor:
        return vary_hounsfield(image, self.rng)
