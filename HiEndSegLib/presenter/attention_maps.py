"""Arithmetic on attention maps before they are shown: finer, compared, cut to a slice. numpy only."""

from __future__ import annotations

import numpy as np

from ..geometry.volume import Volume
from ..operations.attend_result import AttentionMap, AttentionResult

#: Cells along the longest axis up to which a map is shown on a finer lattice, and how much finer: odd numbers, so that
#: every cell's center stays a voxel's center.
_FINER = ((16, 5), (32, 3))


def find(result: AttentionResult, layer: int | None, head: str) -> AttentionMap:
    """The map of a layer and head; the last layer or the mean where those are not in the result."""
    wanted = None if head == "mean" else int(head)
    layers = [one.layer for one in result.maps]
    layer = layer if layer in layers else layers[-1]
    same = [one for one in result.maps if one.layer == layer]
    return next((one for one in same if one.head == wanted), same[0])


def telling(result: AttentionResult) -> int:
    """The deepest layer of a result whose attention is not spread evenly; the last one where all are."""
    means = [one for one in result.maps if one.head in (None, result.maps[0].head)]
    good = [one.layer for one in means if not one.is_even]
    return good[-1] if good else means[-1].layer


def cells(one: AttentionMap) -> Volume:
    """One voxel per cell, in times an even share."""
    return one.as_cells("times")


def finer(one: AttentionMap) -> Volume:
    """The map in times an even share on a finer lattice: linear between the cells' centers, level outside of them.

    A slice view cuts an image at its outermost centers; here those lie near the cells' outer faces.
    """
    coarse = cells(one)
    factor = next((factor for most, factor in _FINER if max(coarse.shape) <= most), 1)
    if factor == 1:
        return coarse
    array = coarse.array
    for axis, size in enumerate(coarse.shape):
        at = np.clip((np.arange(size * factor) + 0.5) / factor - 0.5, 0, size - 1)
        low = np.minimum(np.floor(at).astype(int), max(size - 2, 0))
        share = (at - low).astype(np.float32).reshape([-1 if n == axis else 1 for n in range(3)])
        array = np.take(array, low, axis) * (1 - share) + np.take(array, np.minimum(low + 1, size - 1), axis) * share
    own = np.eye(4)
    own[:3, :3] /= factor
    own[:3, 3] = 0.5 / factor - 0.5
    return Volume(array.astype(np.float32), coarse.ijk_to_ras @ own, coarse.name)


def in_common(one: AttentionMap, other: AttentionMap) -> float:
    """Share of their attention that two maps have in common, 0 to 1; the second is brought onto the first's cells."""
    first, second = one.weights.astype(np.float64), other.weights.astype(np.float64)
    if first.shape != second.shape or not np.allclose(one.ijk_to_ras, other.ijk_to_ras, atol=1e-3):
        from ..bridge.planes import sample

        index = np.moveaxis(np.indices(first.shape), 0, -1)
        points = index @ one.ijk_to_ras[:3, :3].T + one.ijk_to_ras[:3, 3]
        second = sample(Volume(other.weights, other.ijk_to_ras), points, 0.0).astype(np.float64)
    total = second.sum()
    return float(np.minimum(first / first.sum(), second / total).sum()) if total > 0 else 0.0


def crop(mask: Volume) -> Volume | None:
    """The box of what is not zero with a rim of zeros (uint8), None where all is zero: a mask is handed over small."""
    where = [np.flatnonzero(mask.array.any(axis=tuple(n for n in range(3) if n != axis))) for axis in range(3)]
    if not all(len(found) for found in where):
        return None
    low, high = [int(found[0]) for found in where], [int(found[-1]) + 1 for found in where]
    matrix = mask.ijk_to_ras.copy()
    matrix[:3, 3] += matrix[:3, :3] @ (np.array(low) - 1)
    piece = mask.array[tuple(slice(a, b) for a, b in zip(low, high))]
    return Volume(np.pad((piece != 0).astype(np.uint8), 1), matrix, mask.name)
