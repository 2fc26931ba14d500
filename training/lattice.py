"""Bring images and label maps onto the training lattice: RAS+ axes, one isotropic spacing."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from HiEndSegLib.geometry.body import body_mask
from HiEndSegLib.geometry.reading import read_volume
from HiEndSegLib.geometry.resample import resample_to_spacing, to_ras_axes
from HiEndSegLib.geometry.volume import Volume

SPACING = 3.0


def load(path: Path) -> Volume:
    """The volume in its closest RAS+ axes, voxels as stored."""
    return to_ras_axes(read_volume(path))


def resample(volume: Volume, spacing: float = SPACING) -> Volume:
    """int16 HU on the new lattice, low-passed where it is coarser, linear in between."""
    result = resample_to_spacing(volume, spacing)
    return result.with_array(np.clip(np.rint(result.array), -1024, 3071).astype(np.int16))


def resample_codes(volume: Volume, codes: np.ndarray, spacing: float = SPACING) -> np.ndarray:
    """A map of codes (labels or bit masks, on the volume's lattice) on the new lattice: each voxel takes the code
    with the largest share of it. Nearest neighbour would drop thin structures when voxels grow from 0.7 to 3 mm."""
    best, result = None, None
    for code in np.unique(codes):
        share = resample_to_spacing(volume.with_array((codes == code).astype(np.float32)), spacing).array
        if best is None:
            best, result = share, np.full(share.shape, code, codes.dtype)
            continue
        better = share > best
        best[better], result[better] = share[better], code
    return result


def body_of(hu: np.ndarray, spacing: float = SPACING) -> np.ndarray:
    """`body_mask` of an array in RAS+ axes."""
    return body_mask(Volume(hu, np.diag([spacing, spacing, spacing, 1.0])))
