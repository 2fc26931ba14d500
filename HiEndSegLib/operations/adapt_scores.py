"""How well a structure is met on chosen voxels: Dice, and the mean distance between the two surfaces (numpy, scipy)."""

from __future__ import annotations

from typing import Sequence

import numpy as np
from scipy import ndimage


def dice(found: np.ndarray, true: np.ndarray, where: np.ndarray | None = None) -> float | None:
    """Dice of two masks over `where`; None where neither has a voxel."""
    if where is not None:
        found, true = found & where, true & where
    total = np.count_nonzero(found) + np.count_nonzero(true)
    return float(2 * np.count_nonzero(found & true) / total) if total else None


def surface_distance(found: np.ndarray, true: np.ndarray, spacing: Sequence[float],
                     where: np.ndarray | None = None) -> float | None:
    """Average symmetric surface distance in mm: the mean over both surfaces' voxels of the way to the other surface.

    where: only surface voxels in it count, but they may find the other surface anywhere, so that a cut through a
    structure is no surface. None where either has no surface voxel there.
    """
    both = found | true
    if not found.any() or not true.any():
        return None
    box = tuple(slice(max(0, int(i.min()) - 1), int(i.max()) + 2) for i in np.nonzero(both))
    found, true = found[box], true[box]
    where = np.ones(found.shape, dtype=bool) if where is None else where[box]
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (found, true)]
    ways = []
    for mine, other in (edges, edges[::-1]):
        ways.append(ndimage.distance_transform_edt(~other, sampling=spacing)[mine & where])
    if not len(ways[0]) or not len(ways[1]):
        return None
    return float(np.concatenate(ways).mean())
