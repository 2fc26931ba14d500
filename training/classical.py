"""What thresholds and anatomy say for certain about any torso CT: body, lungs, bone, and what a voxel cannot be.

Everything works on int16/float HU arrays (I, J, K) in RAS+ axes at 3 mm isotropic spacing. Nothing here guesses:
a mask that does not look like what it should be is left out, and the voxels stay unknown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
from scipy import ndimage as ndi

from HiEndSegLib.geometry.body import body_mask
from training.structures import ALL_BITS, bit, without

VOXEL_ML = 0.027
_GUT = ("stomach", "duodenum", "small_bowel", "colon", "esophagus")
_CONNECT = ndi.generate_binary_structure(3, 1)


def _ball(radius: int) -> np.ndarray:
    grid = np.indices((2 * radius + 1,) * 3) - radius
    return (grid ** 2).sum(0) <= radius ** 2 + 0.5


def _within(mask: np.ndarray, voxels: float) -> np.ndarray:
    """Where the distance to the mask is at most so many voxels (none where the mask is empty)."""
    if not mask.any():
        return np.zeros(mask.shape, bool)
    return ndi.distance_transform_edt(~mask) <= voxels


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Component numbers and their sizes in voxels (size[0] = 0)."""
    labels, count = ndi.label(mask, _CONNECT)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return labels, sizes


def body(hu: np.ndarray) -> np.ndarray:
    """Patient without table and air, lungs filled."""
    return body_mask(SimpleNamespace(array=hu, spacing=np.full(3, 3.0), ijk_to_ras=np.diag([3.0, 3.0, 3.0, 1.0])))


@dataclass
class Lungs:
    left: np.ndarray
    right: np.ndarray
    airway: np.ndarray
    notes: list[str] = field(default_factory=list)

    @property
    def both(self) -> np.ndarray:
        return self.left | self.right


def _airway(hu: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Trachea and main bronchi: a narrow tube of air near the midline that enters from the top of the volume."""
    air = inside & (hu < -800)
    empty = np.zeros(hu.shape, bool)
    columns = np.flatnonzero(inside.any((1, 2)))
    if len(columns) == 0:
        return empty
    middle = (columns[0] + columns[-1]) / 2
    seed = None
    for k in range(hu.shape[2] - 1, max(-1, hu.shape[2] - 25), -1):
        labels, count = ndi.label(air[:, :, k])
        best = None
        for number in range(1, count + 1):
            spot = labels == number
            area = int(spot.sum())
            ci, _ = ndi.center_of_mass(spot)
            if 5 <= area <= 60 and abs(ci - middle) < 12 and (best is None or area > best[0]):
                best = (area, spot)
        if best is not None:
            seed = (k, best[1])
            break
    if seed is None:
        return empty
    # Follow the tube downwards slice by slice; stop when it opens into a lung.
    result = empty.copy()
    k, spot = seed
    result[:, :, k] = spot
    previous = spot
    for k in range(k - 1, -1, -1):
        labels, count = ndi.label(air[:, :, k] & (hu[:, :, k] < -850))
        touching = np.unique(labels[ndi.binary_dilation(previous)])
        current = np.zeros_like(previous)
        for number in touching[touching > 0]:
            piece = labels == number
            if piece.sum() <= 80:
                current |= piece
        if not current.any() or current.sum() > 160:
            break
        result[:, :, k] = current
        previous = current
    return result


def lungs(hu: np.ndarray, inside: np.ndarray) -> Lungs | None:
    """Aerated lungs, left and right, or None where no plausible pair is found.

    Air inside the body is split into pieces by opening and watershed; a piece is lung when it is large and not as
    black and even as bowel gas. The sides are told apart by the body's midline; a piece that spans both sides is cut
    by a watershed from its far left and far right parts."""
    aerated = inside & (hu < -500)
    airway = _airway(hu, inside)
    near_airway = ndi.binary_dilation(airway, iterations=1) & (hu < -500)
    candidate = aerated & ~near_airway
    labels, sizes = _components(ndi.binary_opening(candidate))
    keep = np.zeros(hu.shape, bool)
    notes = []
    for number in np.flatnonzero(sizes * VOXEL_ML > 40):
        piece = labels == number
        deep = ndi.binary_erosion(piece, iterations=1)
        if deep.sum() < 200:
            continue
        values = hu[deep]
        if np.mean(values < -960) > 0.6:       # gas in stomach or bowel is black and even, lung is not
            continue
        keep |= piece
    if keep.sum() * VOXEL_ML < 150:
        return None
    keep = _within(keep, 1.5) & candidate
    columns = inside.any(2)
    rows = np.flatnonzero(columns.any(1))
    middle = (rows[0] + rows[-1]) / 2
    index = np.arange(hu.shape[0])[:, None, None]
    # One watershed for all pieces: seeds are the deep parts on either side of the midline.
    depth = ndi.distance_transform_edt(keep)
    markers = np.zeros(hu.shape, np.int32)
    seeds = depth > min(4.0, 0.5 * depth.max())
    seed_labels, _ = ndi.label(seeds, _CONNECT)
    for number, box in enumerate(ndi.find_objects(seed_labels), 1):
        spot = seed_labels[box] == number
        centre = box[0].start + np.argwhere(spot)[:, 0].mean()
        span = (box[0].start, box[0].stop - 1)
        if span[0] < middle - 6 and span[1] > middle + 6:
            markers[(seed_labels == number) & (index < middle - 10)] = 1
            markers[(seed_labels == number) & (index > middle + 10)] = 2
        else:
            markers[seed_labels == number] = 1 if centre < middle else 2
    cost = np.clip(255 - depth * 12, 1, 255).astype(np.uint8)
    markers[~keep & (markers == 0)] = 3
    split = ndi.watershed_ift(cost, markers.astype(np.int16), _CONNECT)
    left, right = keep & (split == 1), keep & (split == 2)
    for name, side in (("left", left), ("right", right)):
        if side.sum() * VOXEL_ML < 80:
            notes.append(f"{name} lung too small to be told from gas ({side.sum() * VOXEL_ML:.0f} ml)")
    return Lungs(left, right, airway, notes)


def contrast_filled(hu: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Even, bright regions (vessels, heart, kidney or bowel with contrast): bright but not bone."""
    smooth = ndi.gaussian_filter(hu.astype(np.float32), 0.7)
    mean = ndi.uniform_filter(smooth, 3)
    spread = np.sqrt(np.maximum(ndi.uniform_filter(smooth ** 2, 3) - mean ** 2, 0))
    even = inside & (smooth > 130) & (spread < 25)
    labels, sizes = _components(ndi.binary_opening(even))
    core = np.isin(labels, np.flatnonzero(sizes > 30))
    return ndi.binary_dilation(core, iterations=2) & (hu > 130)


@dataclass
class Bone:
    certain: np.ndarray        # bone tissue for certain (vertebra or other)
    possible: np.ndarray       # everywhere else bone can be excluded
    spine: np.ndarray          # (K, 2): i and j of the vertebral column per slice, NaN where not found


def bone(hu: np.ndarray, inside: np.ndarray) -> Bone:
    """Dense tissue that belongs to the skeleton, and the region outside of which there is none."""
    bright = contrast_filled(hu, inside)
    dense = inside & (hu > 220) & ~bright
    labels, sizes = _components(dense)
    skeleton = np.isin(labels, np.flatnonzero(sizes >= 40))
    # A real bone has some cortex; lone contrast and calcifications in soft tissue are small or even.
    peak = ndi.maximum(hu, labels, np.arange(len(sizes)))
    skeleton &= np.isin(labels, np.flatnonzero(np.asarray(peak) > 350))
    spine = _spine(skeleton, inside)
    certain = skeleton & (hu > 260)
    reach = ndi.binary_closing(np.pad(inside & (hu > 200), 6), _ball(5))[6:-6, 6:-6, 6:-6]
    return Bone(certain, _within(reach, 3), spine)


def _spine(skeleton: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Middle of the vertebral column per slice: the densest column of bone near the midline in the back half."""
    shape = skeleton.shape
    line = np.full((shape[2], 2), np.nan)
    if not inside.any():
        return line
    rows = np.flatnonzero(inside.any((1, 2)))
    middle = (rows[0] + rows[-1]) / 2
    for k in range(shape[2]):
        section = skeleton[:, :, max(0, k - 4):k + 5].sum(2).astype(np.float32)
        columns = np.flatnonzero(inside[:, :, k].any(0))
        if len(columns) < 10:
            continue
        front = columns[0] + 0.62 * (columns[-1] - columns[0])
        section[:, int(front):] = 0
        section[np.abs(np.arange(shape[0]) - middle) > 22] = 0
        blurred = ndi.gaussian_filter(section, 5)
        if blurred.max() <= 0.2:
            continue
        line[k] = np.unravel_index(int(blurred.argmax()), blurred.shape)
    good = np.flatnonzero(~np.isnan(line[:, 0]))
    if len(good) < 5:
        return np.full((shape[2], 2), np.nan)
    for axis in range(2):
        filled = np.interp(np.arange(shape[2]), good, line[good, axis])
        filled = ndi.median_filter(filled, min(15, shape[2]), mode="nearest")
        line[:, axis] = ndi.gaussian_filter1d(filled, 4, mode="nearest")
    return line


@dataclass
class Findings:
    possible: np.ndarray       # (I, J, K) uint32
    body: np.ndarray
    lungs: Lungs | None
    bone: Bone
    notes: list[str]


def classical(hu: np.ndarray, *, inside: np.ndarray | None = None, sacrum_top: int | None = None,
              with_lungs: bool = True) -> Findings:
    """Everything known for certain about an unlabelled CT, as bit masks of what each voxel may be.

    `sacrum_top`: slices below it may show the sacrum, where bone in the midline is not called vertebra; None when the
    volume does not reach the pelvis."""
    hu = hu.astype(np.float32)
    inside = body(hu) if inside is None else inside
    possible = np.full(hu.shape, ALL_BITS, np.uint32)
    notes: list[str] = []
    possible[~ndi.binary_dilation(inside, iterations=1)] = bit("background")
    possible[~inside & (hu < -300)] = bit("background")

    smooth = ndi.gaussian_filter(hu, 0.6)
    low, high = ndi.minimum_filter(smooth, 3), ndi.maximum_filter(smooth, 3)

    found_bone = bone(hu, inside)
    possible[inside & ~found_bone.possible] &= without("vertebrae", "bone")

    found = lungs(hu, inside) if with_lungs else None
    gas = inside & (hu < -400)
    if found is None:
        possible[inside & (low > -150)] &= without("lung_left", "lung_right")
        # Gas that may also be a lung base: bowel or lung, nothing solid.
        possible[gas] &= bit("background", "lung_left", "lung_right", *_GUT)
    else:
        notes += found.notes
        near = _within(found.both, 3)
        far = ~_within(found.both, 5) & inside & (hu > -300)
        possible[far] &= without("lung_left", "lung_right")
        possible[gas & near] &= bit("background", "lung_left", "lung_right", *_GUT)
        possible[gas & ~near] &= bit("background", *_GUT)
        possible[found.left] = bit("lung_left")
        possible[found.right] = bit("lung_right")
        for name, other, side in (("lung_left", "lung_right", found.left), ("lung_right", "lung_left", found.right)):
            opposite = found.right if side is found.left else found.left
            closed = ndi.binary_closing(np.pad(side, 3), _ball(2))[3:-3, 3:-3, 3:-3]
            vessels = closed & ~found.both & (hu < 100)
            possible[vessels] &= bit("background", name, "heart", "esophagus", "aorta")
            possible[_within(side, 3) & ~_within(opposite, 5)] &= without(other)
        possible[found.airway] = bit("background")

    fat = inside & (low > -145) & (high < -55)
    possible[fat & ~found_bone.possible] = bit("background")
    possible[fat & found_bone.possible] &= bit("background", "vertebrae", "bone")
    # Gallbladder, bladder and vessels can hold contrast or stones; these three cannot be so dense or so light.
    possible[inside & ((low > 400) | (high < -60))] &= without("liver", "spleen", "pancreas")

    dense = found_bone.certain & found_bone.possible
    possible[dense] = _bone_bits(hu.shape, found_bone.spine, sacrum_top)[dense]
    marrow = found_bone.possible & ~dense & inside
    possible[marrow] &= _bone_bits(hu.shape, found_bone.spine, sacrum_top)[marrow] | without("vertebrae", "bone")
    return Findings(possible, inside, found, found_bone, notes)


def _bone_bits(shape: tuple[int, ...], spine: np.ndarray, sacrum_top: int | None) -> np.ndarray:
    """Which of vertebra and other bone a bone voxel may be, by its place relative to the vertebral column."""
    bits = np.full(shape, bit("vertebrae", "bone"), np.uint32)
    i, j = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    for k in range(shape[2]):
        if np.isnan(spine[k, 0]):
            continue
        side, front = np.abs(i - spine[k, 0]), j - spine[k, 1]
        away = (side > 20) | (front > 22)                      # 60 mm beside or 66 mm before the column
        bits[:, :, k][np.broadcast_to(away, shape[:2])] = bit("bone")
        if sacrum_top is None or k >= sacrum_top:
            core = (side <= 5) & (front < 12)
            bits[:, :, k][np.broadcast_to(core, shape[:2])] = bit("vertebrae")
    return bits
