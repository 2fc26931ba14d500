"""Volume and mean intensity of every structure of a label map."""

from __future__ import annotations

import numpy as np

from .labels import Label
from .resample import slabs
from .volume import Volume


def structure_statistics(labels: Volume, image: Volume | None, legend: list[Label]) -> list[dict]:
    """One row per legend entry, in its order, structures that were not found included.

    labels: uint8; image: on the same lattice (its shape must be equal), or None.
    Row: {"id", "name", "value", "voxels", "volume_ml", "mean_hu"}; mean_hu is None without image or without voxels.
    Memory beside the inputs is that of a slab.
    """
    if image is not None and image.shape != labels.shape:
        raise ValueError(f"image {image.shape} and labels {labels.shape} are not on one lattice")
    voxels, sums = np.zeros(256, dtype=np.int64), np.zeros(256)
    # Slabs along the label map's slowest axis, so that they are read in memory order.
    axis = int(np.argmax(np.abs(labels.array.strides)))
    for part in slabs(labels.shape, axis=axis):
        window = tuple(part if a == axis else slice(None) for a in range(3))
        slab = labels.array[window]
        if not slab.any():
            voxels[0] += slab.size
            continue
        order = "C" if axis == 0 else "F"
        flat = slab.ravel(order=order)
        voxels += np.bincount(flat, minlength=256)
        if image is not None:
            inside = np.flatnonzero(flat)
            values = image.array[window].ravel(order=order)[inside]
            sums += np.bincount(flat[inside], weights=values, minlength=256)
    return [{"id": label.id, "name": label.name, "value": label.value, "voxels": int(voxels[label.value]),
             "volume_ml": float(voxels[label.value] * labels.voxel_ml),
             "mean_hu": float(sums[label.value] / voxels[label.value])
             if image is not None and voxels[label.value] else None} for label in legend]
