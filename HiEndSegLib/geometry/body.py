"""The patient's body in a CT: what is left when the room's air and the table are taken away.

Thresholds and morphology only (scipy.ndimage), so it needs no training and no torch. Axial slices carry the logic:
lungs and bowel gas are closed in them, whereas a scan's first and last slice cut them open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from .volume import Volume

#: Skin and fat lie above it, lungs, gas and table foam below it (HU).
TISSUE_HU = -300.0
#: Room air lies below it after averaging; aerated lung above it (HU).
AIR_HU = -930.0
#: The table's shell and tubes are thinner than twice this, limbs are thicker (mm).
OPENING_MM = 6.0
#: Finer volumes are thinned out to about this spacing before any filter runs (mm).
WORKING_MM = 3.0
#: A further piece (arm, second leg) is kept from this share of the largest piece on.
PIECE_SHARE = 0.01
#: Lung lies below it after averaging (HU).
LUNG_HU = -500.0
#: Lung outside the closed body is looked for from this volume on (ml), and believed if the body makes up at least
#: this share of its surroundings.
LUNG_ML = 10.0
HELD_SHARE = 0.4
#: Slices this far apart (mm, to either side) speak for the ones between them.
BRIDGE_MM = 12.0


def body_mask(volume_hu: Volume) -> np.ndarray:
    """The patient without table and room air; lungs and bowel gas inside are filled.

    volume_hu: any lattice, HU. Where nothing is as light as air (a crop inside the patient, MR, a clipped window)
    everything is body; where nothing is heavier than air nothing is. Takes about half a second for a torso at 3 mm;
    finer volumes are looked at every few voxels, so that they cost the same.

    Returns bool (I, J, K) on the volume's lattice. Raises nothing.
    """
    array = volume_hu.array
    spacing = np.asarray(volume_hu.spacing, dtype=float)
    if 0 in array.shape:
        return np.zeros(array.shape, dtype=bool)
    axial = _axial_axis(np.asarray(volume_hu.ijk_to_ras), array.shape)
    strides = np.maximum(1, np.floor(WORKING_MM / spacing + 1e-3).astype(int))
    thin = array[tuple(slice(min(s // 2, n - 1), None, s) for s, n in zip(strides, array.shape))]
    thin = np.nan_to_num(np.moveaxis(thin, axial, 2).astype(np.float32), nan=-1024.0)
    steps = spacing * strides
    mask = np.moveaxis(_body(thin, np.append(np.delete(steps, axial), steps[axial])), 2, axial)
    for axis, (stride, size) in enumerate(zip(strides, array.shape)):
        if stride > 1:
            nearest = np.minimum(np.arange(size) // stride, mask.shape[axis] - 1)
            mask = np.take(mask, nearest, axis=axis)
    return mask


def _axial_axis(ijk_to_ras: np.ndarray, shape: tuple[int, ...]) -> int:
    """The axis across axial slices; across a one-slice volume's only slice, whichever way it lies."""
    if min(shape) == 1 and max(shape) > 1:
        return int(np.argmin(shape))
    directions = np.abs(ijk_to_ras[:3, :3]) / np.linalg.norm(ijk_to_ras[:3, :3], axis=0)
    return int(np.argmax(directions[2]))


def _body(hu: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """`body_mask` on an array whose last axis runs across the slices."""
    hu = np.clip(hu, -1024.0, 200.0)   # scanners fill the corners outside their circle with -2000 or -3024
    smooth = ndimage.uniform_filter(hu, size=[3 if n > 2 else 1 for n in hu.shape], mode="nearest")
    air = smooth < AIR_HU
    if not air.any():
        return np.ones(hu.shape, dtype=bool)
    tissue = hu > TISSUE_HU
    if not tissue.any():
        return np.full(hu.shape, bool(air.mean() < 0.5))    # a crop of emphysematous lung, or an empty room
    body = _fill_slices(_pieces(tissue, spacing))
    if not body.any():
        return body
    # A thin chest wall is lost with the table, and with it what it encloses; both come back once the lung is known.
    hollow = _fill_slices(tissue) & ~tissue & ~body
    lung = ~body & (smooth > AIR_HU) & (smooth < LUNG_HU)
    body |= _held(hollow, body, spacing) | _held(lung, body, spacing)
    return _fill_slices(_bridged(_fill_slices(_pieces(tissue | body, spacing)), spacing))


def _bridged(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """`mask` with what the slices within BRIDGE_MM above and below agree on: lung that leaks out of single slices."""
    reach = int(BRIDGE_MM // spacing[2])
    if reach == 0 or mask.shape[2] < 3:
        return mask
    # A closing along one axis as two running extremes: a tenth of the time of binary_closing with a line.
    padded = np.pad(mask.view(np.uint8), ((0, 0), (0, 0), (2 * reach, 2 * reach)), mode="edge")
    grown = ndimage.maximum_filter1d(padded, 2 * reach + 1, axis=2)
    closed = ndimage.minimum_filter1d(grown, 2 * reach + 1, axis=2)
    return mask | closed[:, :, 2 * reach:-2 * reach].view(bool)


def _ball(spacing: np.ndarray, radius_mm: float) -> np.ndarray:
    """Voxels whose centre lies within radius_mm of the centre voxel; (odd, odd, odd) bool."""
    reach = np.floor(radius_mm / spacing).astype(int)
    grid = np.meshgrid(*(np.arange(-r, r + 1) * s for r, s in zip(reach, spacing)), indexing="ij")
    return sum(g * g for g in grid) <= radius_mm * radius_mm + 1e-6


def _pieces(tissue: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Thick connected parts of `tissue`: torso, arms, legs; the thin shells of a table fall off."""
    ball = _ball(spacing, OPENING_MM)
    eroded = ndimage.binary_erosion(tissue, ball, border_value=1)   # a scan's edge is no skin
    labels, count = ndimage.label(eroded)
    if count == 0:
        return np.zeros_like(tissue)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    keep = sizes >= max(1.0, PIECE_SHARE * sizes.max())
    return ndimage.binary_dilation(keep[labels], ball) & tissue


def _fill_slices(mask: np.ndarray) -> np.ndarray:
    """Holes of every slice filled (slices along the last axis)."""
    structure = np.zeros((3, 3, 3), dtype=bool)
    structure[:, 1, 1] = structure[1, :, 1] = True      # no neighbours across slices
    return ndimage.binary_fill_holes(mask, structure) if min(mask.shape[:2]) > 2 else mask


def _held(candidate: np.ndarray, body: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Those large parts of `candidate` that `body` holds on a good share of their surface.

    That is lung behind a thin chest wall or cut open by the field of view; not the foam inside a table, which only
    lies against the back. What is outside the volume counts for neither side.
    """
    found = np.zeros_like(body)
    ball = _ball(spacing, OPENING_MM)
    labels, count = ndimage.label(ndimage.binary_erosion(candidate, ball, border_value=1))
    if count == 0:
        return found
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    boxes = ndimage.find_objects(labels)
    reach = np.array(ball.shape) // 2 + 2
    for value in np.nonzero(sizes * float(np.prod(spacing)) / 1000.0 >= LUNG_ML)[0]:
        box = tuple(slice(max(0, s.start - r), s.stop + r) for s, r in zip(boxes[value - 1], reach))
        part = ndimage.binary_dilation(labels[box] == value, ball) & candidate[box]
        shell = ndimage.binary_dilation(part, iterations=2) & ~part
        if shell.any() and body[box][shell].mean() >= HELD_SHARE:
            found[box] |= part
    return found
