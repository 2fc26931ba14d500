"""Small helpers on bool masks (I, J, K) at 3 mm."""

from __future__ import annotations

import numpy as np
from scipy import ndimage as ndi

VOXEL_ML = 0.027
_CONNECT = ndi.generate_binary_structure(3, 1)


def ball(radius: int) -> np.ndarray:
    grid = np.indices((2 * radius + 1,) * 3) - radius
    return (grid ** 2).sum(0) <= radius ** 2 + 0.5


def within(mask: np.ndarray, voxels: float) -> np.ndarray:
    """Where the distance to the mask is at most so many voxels (none where the mask is empty)."""
    if not mask.any():
        return np.zeros(mask.shape, bool)
    return ndi.distance_transform_edt(~mask) <= voxels


def components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Component numbers and their sizes in voxels (size[0] = 0)."""
    labels, count = ndi.label(mask, _CONNECT)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return labels, sizes
