"""Bring images and label maps onto the training lattice: RAS+ axes, one isotropic spacing."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage as ndi

SPACING = 3.0


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (I, J, K) in the closest RAS+ axes, and the matrix from voxel centres to mm."""
    image = nibabel.as_closest_canonical(nibabel.load(str(path)))
    return np.asarray(image.dataobj), image.affine.astype(np.float64)


def _grid(shape: tuple[int, ...], affine: np.ndarray, spacing: float) -> tuple[tuple[int, ...], np.ndarray]:
    old = np.linalg.norm(affine[:3, :3], axis=0)
    new_shape = tuple(max(1, int(round(n * s / spacing))) for n, s in zip(shape, old))
    new = affine.copy()
    new[:3, :3] = affine[:3, :3] / old * spacing
    # The same extent: the centres of both boxes coincide.
    centre = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    new[:3, 3] = centre - new[:3, :3] @ ((np.array(new_shape) - 1) / 2)
    return new_shape, new


def _smooth(array: np.ndarray, old: np.ndarray, spacing: float) -> np.ndarray:
    factor = spacing / old
    sigma = np.where(factor > 1, 0.4 * np.sqrt(np.maximum(factor ** 2 - 1, 0)), 0)
    return ndi.gaussian_filter(array, sigma, mode="nearest") if sigma.any() else array


def resample(array: np.ndarray, affine: np.ndarray, spacing: float = SPACING) -> tuple[np.ndarray, np.ndarray]:
    """float32 values on the new lattice, low-passed where it is coarser, linear in between."""
    old = np.linalg.norm(affine[:3, :3], axis=0)
    shape, new = _grid(array.shape, affine, spacing)
    values = array.astype(np.float32)
    if np.allclose(old, spacing) and shape == array.shape:
        return values, new
    matrix = np.linalg.inv(affine) @ new
    result = ndi.affine_transform(_smooth(values, old, spacing), matrix[:3, :3], matrix[:3, 3], shape, order=1,
                                  mode="nearest", output=np.float32)
    return result, new


def resample_codes(codes: np.ndarray, affine: np.ndarray, spacing: float = SPACING) -> np.ndarray:
    """A map of codes (labels or bit masks) on the new lattice: each voxel takes the code with the largest share of
    it. Nearest neighbour would drop thin structures when voxels grow from 0.7 to 3 mm."""
    values = np.unique(codes)
    best, result = None, None
    for value in values:
        share, _ = resample((codes == value).astype(np.float32), affine, spacing)
        if best is None:
            best, result = share, np.full(share.shape, value, codes.dtype)
            continue
        better = share > best
        best[better], result[better] = share[better], value
    return result
