"""Aerated lungs and airway in any torso CT, by thresholds, connection and place; HU arrays (I, J, K), RAS+, 3 mm."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage as ndi

from training.masks import VOXEL_ML, ball, components, within


@dataclass
class Lungs:
    left: np.ndarray
    right: np.ndarray
    airway: np.ndarray
    notes: list[str] = field(default_factory=list)

    @property
    def both(self) -> np.ndarray:
        return self.left | self.right


def _airway(hu: np.ndarray, inside: np.ndarray, middle: float) -> np.ndarray:
    """Trachea and main bronchi: a narrow tube of air near the midline that enters from the top of the volume."""
    empty = np.zeros(hu.shape, bool)

    def follow(start: int, spot: np.ndarray, step: int, threshold: float) -> dict[int, np.ndarray]:
        # Slice by slice, until the tube ends or opens into something wide.
        found, k = {start: spot}, start + step
        while 0 <= k < hu.shape[2]:
            numbers, _ = ndi.label(inside[:, :, k] & (hu[:, :, k] < threshold))
            touching = np.unique(numbers[ndi.binary_dilation(found[k - step])])
            pieces = [numbers == number for number in touching if number]
            current = sum((piece for piece in pieces if piece.sum() <= 80), empty[:, :, 0])
            if not current.any() or current.sum() > 160:
                break
            found[k] = current
            k += step
        return found

    for k in range(hu.shape[2] - 1, hu.shape[2] // 3, -1):
        labels, count = ndi.label(inside[:, :, k] & (hu[:, :, k] < -800))
        for number in range(1, count + 1):
            spot = labels == number
            if not (8 <= spot.sum() <= 60 and abs(ndi.center_of_mass(spot)[0] - middle) < 8):
                continue
            track = follow(k, spot, -1, -850)
            if len(track) < 8:
                track = follow(k, spot, -1, -800)
            if len(track) >= 8:
                result = empty.copy()
                for index, section in (track | follow(k, spot, 1, -500)).items():
                    result[:, :, index] = section
                return result
    return empty


def lungs(hu: np.ndarray, inside: np.ndarray, middle: float) -> Lungs | None:
    """Aerated lungs, left and right, or None where no plausible pair is found.

    `middle`: i index of the vertebral column. A piece of air is lung when it is large and not as black and even as
    gas in stomach or bowel. The two lungs may touch in front of the heart: they are thinned until every large piece
    lies on one side, then each voxel goes with the nearest piece."""
    airway = _airway(hu, inside, middle)
    candidate = inside & (hu < -500) & ~ndi.binary_dilation(airway, iterations=1)
    labels, sizes = components(ndi.binary_opening(candidate))
    usual = np.median(hu[labels == int(sizes.argmax())]) if sizes.any() else 0.0
    if usual > -850:        # stomach or colon gas under a thin diaphragm: far blacker than this person's lung
        black = ndi.binary_opening(candidate & (ndi.uniform_filter(hu, 3) < -935), ball(1))
        candidate &= ~ndi.binary_dilation(black, ball(2))
        labels, sizes = components(ndi.binary_opening(candidate))
    keep = np.zeros(hu.shape, bool)
    for number in np.flatnonzero(sizes * VOXEL_ML > 20):
        piece = labels == number
        deep = ndi.binary_erosion(piece, iterations=1)
        level = np.median(hu[deep]) if deep.sum() > 100 else -1000.0
        if level > (-945 if sizes[number] * VOXEL_ML > 100 else usual - 60):
            keep |= piece
    if keep.sum() * VOXEL_ML < 150:
        return None
    keep = within(keep, 1.5) & candidate
    index = np.arange(hu.shape[0])[:, None, None]
    depth = ndi.distance_transform_edt(keep)
    sides = np.zeros(hu.shape, np.uint8)
    for radius in (0, 1, 1.5, 2, 3, 4):
        labels, sizes = components(depth > radius)
        sides[:] = 0
        clean = True
        for number in np.flatnonzero(sizes * VOXEL_ML > 10):
            piece = labels == number
            share = float((piece & (index < middle)).sum() / piece.sum())
            clean &= share < 0.2 or share > 0.8
            sides[piece] = 1 if share > 0.5 else 2
        if clean:
            break
    else:
        sides = np.where(depth > 4, np.where(index < middle, 1, 2), 0).astype(np.uint8)
    nearest = ndi.distance_transform_edt(sides == 0, return_distances=False, return_indices=True)
    sides = np.where(keep, sides[tuple(nearest)], 0)
    left, right = sides == 1, sides == 2
    notes = [f"{name} lung {side.sum() * VOXEL_ML:.0f} ml" for name, side in (("left", left), ("right", right))]
    return Lungs(left, right, airway, notes)
