"""A region of interest in patient millimetres: checked, as a box of voxels, and applied to a label map."""

from __future__ import annotations

import math
from typing import Sequence

import numpy as np

from ..errors import OptionError
from ..geometry.volume import Volume
from ..tasks import CancelToken

Roi = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]


def check_roi(roi: Sequence[Sequence[float]]) -> Roi:
    """((R0, R1), (A0, A1), (S0, S1)) in mm as floats, each pair in order. Raises OptionError."""
    try:
        pairs = tuple((float(low), float(high)) for low, high in roi)
    except (TypeError, ValueError):
        pairs = ()
    if len(pairs) != 3 or not all(map(math.isfinite, (v for pair in pairs for v in pair))):
        raise OptionError("A region of interest is six numbers in mm: right from and to, anterior from and to, "
                          f"superior from and to; {roi!r} is something else.")
    for name, (low, high) in zip(("right", "anterior", "superior"), pairs):
        if low >= high:
            raise OptionError(f"The region of interest runs from {low:g} to {high:g} mm along {name}; "
                              "the second number must be larger.")
    return pairs


def roi_box(roi: Roi, ras_to_ijk: np.ndarray, shape: Sequence[int], margin: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Index box [low, high) of a lattice that holds every voxel centre inside the RAS box; empty if high <= low."""
    corners = np.array([[r, a, s, 1.0] for r in roi[0] for a in roi[1] for s in roi[2]])
    indices = (corners @ ras_to_ijk.T)[:, :3]
    low = np.maximum(np.ceil(indices.min(0) - 1e-6).astype(int) - margin, 0)
    high = np.minimum(np.floor(indices.max(0) + 1e-6).astype(int) + 1 + margin, shape)
    return low, high


def extent_sentence(volume: Volume) -> str:
    """Where a volume lies, in mm: "right -120 to 130, anterior …"."""
    corners = np.array([[i, j, k, 1.0] for i in (-0.5, volume.shape[0] - 0.5) for j in (-0.5, volume.shape[1] - 0.5)
                        for k in (-0.5, volume.shape[2] - 0.5)])
    points = (corners @ volume.ijk_to_ras.T)[:, :3]
    return ", ".join(f"{name} {low:.0f} to {high:.0f}" for name, low, high in
                     zip(("right", "anterior", "superior"), points.min(0), points.max(0)))


def clear_outside_roi(labels: Volume, roi: Roi, cancel: CancelToken | None = None) -> None:
    """Set every voxel whose centre lies outside the RAS box to 0."""
    array = labels.array
    low, high = roi_box(roi, labels.ras_to_ijk, labels.shape)
    for axis in range(3):
        side = [slice(None)] * 3
        side[axis] = slice(0, max(0, int(low[axis])))
        array[tuple(side)] = 0
        side[axis] = slice(max(0, int(high[axis])), None)
        array[tuple(side)] = 0
    if (high <= low).any():
        return
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high))
    inner = array[box]
    i, j, k = (np.arange(s.start, s.stop) for s in box)
    for layer, index in enumerate(k):
        if cancel is not None:
            cancel.check()
        outside = np.zeros(inner.shape[:2], dtype=bool)
        for row, (first, last) in zip(labels.ijk_to_ras, roi):
            position = (row[0] * i)[:, None] + (row[1] * j)[None, :] + (row[2] * index + row[3])
            outside |= (position < first - 1e-6) | (position > last + 1e-6)
        inner[:, :, layer][outside] = 0

