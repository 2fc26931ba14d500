"""Augmentation of one crop: turned, scaled and bent by one `grid_sample`, and its intensities made to vary.

Flipping is left out: left and right are labels. All of it is torch on purpose: one `grid_sample` for rotation, scale
and elastic deformation of a 96^3 crop takes 0.1 s on 2 cores; the same chain of MONAI transforms took over a second.
Every draw comes from the numpy generator that is handed in, so a seed decides everything.
"""

from __future__ import annotations

import math
from typing import Sequence, Union

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


Size = Union[int, Sequence[int]]


def keep_inside(centre: np.ndarray, shape: Sequence[int], size: Size, play: float = 8) -> np.ndarray:
    """The centre moved so that most of a crop of `size` lies inside; shorter axes are centred with some play."""
    shape, size = np.asarray(shape, float), np.asarray(size)
    low, high = np.minimum(size / 2, shape / 2) - play, np.maximum(shape - size / 2, shape / 2) + play
    return np.clip(centre, low, high)


def random_grid(rng: np.random.Generator, centre: np.ndarray, shape: Sequence[int], size: Size, *, turn: float = 7,
                scale: float = 0.10, bend: float = 0.7) -> Tensor:
    """Sampling grid (1, *size, 3) for `grid_sample` (align_corners) of a crop about `centre` (voxels).

    turn: degrees about each axis, one standard deviation. scale: the same of the logarithm, for each axis and for all
    together. bend: how often a smooth displacement (up to about 3 voxels between knots) is added.
    """
    matrix = rotation(rng.normal(0, math.radians(turn), 3)) @ np.diag(np.exp(rng.normal(0, scale, 3)) *
                                                                     math.exp(rng.normal(0, scale)))
    points = _lattice(size) @ torch.from_numpy(matrix.T).float()
    if rng.random() < bend:
        knots = int(rng.integers(4, 8))
        coarse = torch.from_numpy(rng.normal(0, rng.uniform(0.5, 3.5), (1, 3, knots, knots, knots))).float()
        shift = F.interpolate(coarse, size=_edges(size), mode="trilinear", align_corners=True)
        points = points + shift[0].permute(1, 2, 3, 0)
    return _as_grid(points, centre, shape)


def plain_grid(centre: np.ndarray, shape: Sequence[int], size: Size) -> Tensor:
    """The grid of the crop as it is."""
    return _as_grid(_lattice(size), centre, shape)


def _edges(size: Size) -> tuple[int, ...]:
    return (size,) * 3 if isinstance(size, int) else tuple(size)


def _lattice(size: Size) -> Tensor:
    lines = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in _edges(size)]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), -1)


def _as_grid(points: Tensor, centre: np.ndarray, shape: Sequence[int]) -> Tensor:
    points = points + torch.from_numpy(np.asarray(centre, float)).float()
    scale = torch.from_numpy(2 / np.maximum(np.asarray(shape, float) - 1, 1)).float()
    return (points * scale - 1).flip(-1)[None]


def sample_image(image: np.ndarray, grid: Tensor, outside: float) -> Tensor:
    """(*size) float32 by trilinear interpolation; `outside` beyond the image."""
    shifted = torch.from_numpy(image.astype(np.float32) - np.float32(outside))[None, None]     # zero padding
    return F.grid_sample(shifted, grid, align_corners=True)[0, 0] + outside


def sample_codes(codes: np.ndarray, grid: Tensor, outside: int = 0) -> Tensor:
    """(*size) int64 by nearest neighbor of whole numbers below 2^24; `outside` beyond them."""
    shifted = torch.from_numpy((codes.astype(np.int64) - outside).astype(np.float32))[None, None]
    return F.grid_sample(shifted, grid, mode="nearest", align_corners=True)[0, 0].round().long() + outside


def vary_hounsfield(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Calibration drift, contrast, noise, blur and thick slices, in HU."""
    generator = torch.Generator().manual_seed(int(rng.integers(2 ** 31)))
    if rng.random() < 0.5:
        image = image * float(rng.uniform(0.9, 1.12)) + float(rng.normal(0, 10))
    if rng.random() < 0.5:                       # soft-tissue contrast about 40 HU, air and bone kept
        gain = float(rng.uniform(0.7, 1.4))
        soft = ((image - 40).abs() < 200).float()
        image = image + (gain - 1) * (image - 40).clamp(-120, 200) * soft
    if rng.random() < 0.25:
        sigma = float(rng.uniform(0.4, 1.0))
        axes = (2,) if rng.random() < 0.5 else (0, 1, 2)
        image = blur(image, sigma * (1.5 if axes == (2,) else 1.0), axes)
    if rng.random() < 0.6:
        noise = torch.randn(image.shape, generator=generator)
        if rng.random() < 0.5:
            noise = blur(noise, 0.6, (0, 1, 2)) * 2.2
        image = image + noise * float(rng.gamma(2.0, 8.0))
    return image


def vary_structures(image: Tensor, structures: Tensor, rng: np.random.Generator, spread: float) -> Tensor:
    """Each structure a little brighter or darker than it was, as contrast medium and disease make it from one person to
    the next. structures: whole numbers, 0 is left alone. spread: one standard deviation, in the image's unit."""
    shifts = rng.normal(0, spread, 256)
    shifts[0] = 0
    return image + blur(torch.from_numpy(shifts).float()[structures], 0.7, (0, 1, 2))


def vary_native(image: Tensor, rng: np.random.Generator, width: float) -> Tensor:
    """Gain, offset, blur and noise for scanner units. width: of the intensity window, what 1 means."""
    generator = torch.Generator().manual_seed(int(rng.integers(2 ** 31)))
    if rng.random() < 0.5:
        image = image * float(rng.uniform(0.9, 1.1)) + float(rng.normal(0, 0.03 * width))
    if rng.random() < 0.25:
        image = blur(image, float(rng.uniform(0.4, 1.0)), (0, 1, 2))
    if rng.random() < 0.6:
        image = image + torch.randn(image.shape, generator=generator) * float(rng.gamma(2.0, 0.015)) * width
    return image


def rotation(angles: Sequence[float]) -> np.ndarray:
    """(3, 3), radians about i, then j, then k."""
    a, b, c = angles
    x = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    y = np.array([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
    z = np.array([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
    return x @ y @ z


def blur(image: Tensor, sigma: float, axes: tuple[int, ...]) -> Tensor:
    """Separable Gaussian blur of a (I, J, K) tensor along `axes`, edges replicated."""
    radius = max(1, int(2.5 * sigma + 0.5))
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    for axis in axes:
        moved = image.movedim(axis, -1)
        flat = F.pad(moved.reshape(-1, 1, moved.shape[-1]), (radius, radius), mode="replicate")
        image = F.conv1d(flat, kernel[None, None]).reshape(moved.shape).movedim(-1, axis)
    return image
