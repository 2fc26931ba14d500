"""What thresholds and anatomy say for certain about any torso CT: body, lungs, bone, and what a voxel cannot be.

Everything works on int16/float HU arrays (I, J, K) in RAS+ axes at 3 mm isotropic spacing. Nothing here guesses:
a mask that does not look like what it should be is left out, and the voxels stay unknown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage as ndi
from scipy.spatial import ConvexHull, QhullError

from training.lattice import body_of
from training.lungs import Lungs, lungs
from training.masks import VOXEL_ML, ball, components, within
from training.structures import ALL_BITS, bit, without

_GUT = ("stomach", "duodenum", "small_bowel", "colon", "esophagus")


def body(hu: np.ndarray) -> np.ndarray:
    """Patient without table and air, lungs filled, also where the chest wall is thinner than a voxel."""
    mask = body_of(hu)
    # A slice whose lung leaks out differs from its neighbours: what they agree on is inside.
    closed = ndi.binary_closing(np.pad(mask, ((0, 0), (0, 0), (4, 4)), mode="edge"), np.ones((1, 1, 9)))[:, :, 4:-4]
    disk = ball(3)[:, :, 3:4]
    closed = ndi.binary_closing(np.pad(closed, ((4, 4), (4, 4), (0, 0))), disk)[4:-4, 4:-4]
    gaps = np.zeros_like(mask)
    for k in range(hu.shape[2]):
        gaps[:, :, k] = ndi.binary_fill_holes(closed[:, :, k])
    gaps &= ~mask
    disk = ball(2)[:, :, 2:3]
    core = ndi.binary_dilation(ndi.binary_opening(gaps, disk), disk)      # lung, not a skin fold
    return mask | (core & gaps)


def _hull(mask: np.ndarray) -> np.ndarray:
    """Convex hull of a 2D mask, as a mask."""
    points = np.argwhere(mask)
    if len(points) < 10 or np.ptp(points[:, 0]) < 2 or np.ptp(points[:, 1]) < 2:
        return mask.copy()
    try:
        equations = ConvexHull(points).equations
    except QhullError:
        return mask.copy()
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in mask.shape), indexing="ij"), -1)
    return np.all(grid @ equations[:, :2].T + equations[:, 2] <= 0.5, -1)


def viscera(hu: np.ndarray, inside: np.ndarray, spine: np.ndarray, pelvis_top: int) -> np.ndarray:
    """Where no bone can be: inside the ring of ribs and muscles, before the vertebral column, above the pelvis.

    With lungs in the slice it is their convex hull less a margin, without lungs what lies 30 mm below the surface of
    the lean body; less a corridor for the vertebrae."""
    result = np.zeros(hu.shape, bool)
    air = ndi.binary_opening(inside & (hu < -500) & (hu > -960))
    lean = ndi.binary_opening(inside & (hu > -40), ball(1))
    i, j = np.arange(hu.shape[0])[:, None], np.arange(hu.shape[1])[None, :]
    for k in range(max(0, pelvis_top), hu.shape[2]):
        if np.isnan(spine[k, 0]):
            continue
        side, front = np.abs(i - spine[k, 0]), j - spine[k, 1]
        left, right = air[:, :, k] & (i < spine[k, 0] - 5), air[:, :, k] & (i > spine[k, 0] + 5)
        if min(left.sum(), right.sum()) > 150:
            inner = ndi.binary_erosion(_hull(air[:, :, k]), iterations=2)
        elif air[:, :, max(0, k - 5):k + 6].any((0, 1)).mean() > 0 and min(left.sum(), right.sum()) > 20:
            inner = ndi.binary_erosion(_hull(air[:, :, k] | lean[:, :, k]), iterations=12)
        else:
            inner = ndi.binary_erosion(np.pad(_hull(lean[:, :, k]), 1), iterations=10)[1:-1, 1:-1]
        corridor = ((front < 4) & (side < 15)) | ((front < 17) & (side < 8.5)) | (front < -3)
        result[:, :, k] = inner & ~corridor
    return result & inside


def contrast_filled(hu: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Even, bright regions (vessels, heart, kidney or bowel with contrast): bright but not bone."""
    smooth = ndi.gaussian_filter(hu.astype(np.float32), 0.7)
    mean = ndi.uniform_filter(smooth, 3)
    spread = np.sqrt(np.maximum(ndi.uniform_filter(smooth ** 2, 3) - mean ** 2, 0))
    even = inside & (smooth > 130) & (spread < 25)
    labels, sizes = components(ndi.binary_opening(even))
    core = np.isin(labels, np.flatnonzero(sizes > 30))
    return ndi.binary_dilation(core, iterations=2) & (hu > 130)


def bright_blood(hu: np.ndarray, soft: np.ndarray) -> np.ndarray:
    """Blood with so much contrast that it is as dense as bone; `soft`: where no bone can be.

    Its level is read off the large dense spaces (heart, great vessels) in `soft`; everything of that level that
    hangs together with them is blood."""
    smooth = ndi.gaussian_filter(hu.astype(np.float32), 1.0)
    dense = ndi.binary_opening(soft & (smooth > 200), ball(2))
    if dense.sum() * VOXEL_ML < 30:
        return np.zeros(hu.shape, bool)
    level = float(np.median(smooth[dense]))
    if level < 230:
        return np.zeros(hu.shape, bool)
    alike = ndi.binary_opening(np.abs(smooth - level) < 0.3 * level, ball(1))
    labels, sizes = components(alike)
    inner = np.bincount(labels[soft], minlength=len(sizes))
    core = np.isin(labels, np.flatnonzero((sizes > 30) & (inner > 0.5 * sizes)))
    return ndi.binary_dilation(core, ball(2)) & (hu > 130)


@dataclass
class Bone:
    certain: np.ndarray        # bone tissue for certain (vertebra or other)
    possible: np.ndarray       # everywhere else bone can be excluded
    spine: np.ndarray          # (K, 2): i and j of the vertebral column per slice, NaN where not found


def bone(hu: np.ndarray, inside: np.ndarray, pelvis_top: int = 0) -> Bone:
    """Dense tissue that belongs to the skeleton, and the region outside of which there is none."""
    bright = contrast_filled(hu, inside)
    dense = inside & (hu > 220) & ~bright
    spine = _spine(dense & (hu > 260), inside)
    soft = viscera(hu, inside, spine, pelvis_top)
    dense &= ~bright_blood(hu, soft)
    labels, sizes = components(dense & ~soft)
    skeleton = np.isin(labels, np.flatnonzero(sizes >= 40))
    # A real bone has some cortex; lone contrast and calcifications in soft tissue are small or even.
    peak = np.asarray(ndi.maximum(hu, labels, np.arange(len(sizes))))
    skeleton &= np.isin(labels, np.flatnonzero(peak > 350))
    spine = _spine(skeleton & (hu > 260), inside)
    soft = viscera(hu, inside, spine, pelvis_top)
    certain = skeleton & (hu > 260) & ~soft
    reach = ndi.binary_closing(np.pad(inside & (hu > 200) & ~soft, 6), ball(5))[6:-6, 6:-6, 6:-6]
    return Bone(certain, within(reach, 3) & ~soft, spine)


def _spine(skeleton: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Middle of the vertebral column per slice, (K, 2): i and j of the vertebral canal's surroundings.

    The densest column of bone in the back half near the midline; a first pass finds the midline of the whole column,
    the second looks for it only close to that."""
    shape = skeleton.shape
    line = np.full((shape[2], 2), np.nan)
    if not inside.any():
        return line
    rows = np.flatnonzero(inside.any((1, 2)))
    middle = np.full(shape[2], (rows[0] + rows[-1]) / 2)
    for width in (22, 7):
        line[:] = np.nan
        for k in range(shape[2]):
            section = skeleton[:, :, max(0, k - 4):k + 5].sum(2).astype(np.float32)
            central = inside[max(0, int(middle[k]) - 3):int(middle[k]) + 4, :, k]
            columns = np.flatnonzero(central.any(0))
            if len(columns) < 10:
                continue
            section[:, int(columns[0] + 0.5 * (columns[-1] - columns[0])):] = 0
            section[np.abs(np.arange(shape[0]) - middle[k]) > width] = 0
            blurred = ndi.gaussian_filter(section, 5)
            if blurred.max() > 0.2:
                line[k] = np.unravel_index(int(blurred.argmax()), blurred.shape)
        good = np.flatnonzero(~np.isnan(line[:, 0]))
        if len(good) < 5:
            return np.full((shape[2], 2), np.nan)
        for axis in range(2):
            filled = np.interp(np.arange(shape[2]), good, line[good, axis])
            filled = ndi.median_filter(filled, min(41 if width > 10 else 15, shape[2]), mode="nearest")
            line[:, axis] = ndi.gaussian_filter1d(filled, 4, mode="nearest")
        middle = line[:, 0].copy()
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

    found_bone = bone(hu, inside, sacrum_top or 0)
    possible[inside & ~found_bone.possible] &= without("vertebrae", "bone")

    rows = np.flatnonzero(inside.any((1, 2)))
    middle = float(np.nanmedian(found_bone.spine[:, 0])) if not np.isnan(found_bone.spine[:, 0]).all() else \
        float(rows[[0, -1]].mean()) if len(rows) else 0.0
    found = lungs(hu, inside, middle) if with_lungs else None
    gas = inside & (hu < -400)
    if found is None:
        possible[inside & (low > -150)] &= without("lung_left", "lung_right")
        # Gas that may also be a lung base: bowel or lung, nothing solid.
        possible[gas] &= bit("background", "lung_left", "lung_right", *_GUT)
    else:
        notes += found.notes
        near = within(found.both, 3)
        far = ~within(found.both, 5) & inside & (hu > -300)
        possible[far] &= without("lung_left", "lung_right")
        possible[gas & near] &= bit("background", "lung_left", "lung_right", *_GUT)
        possible[gas & ~near] &= bit("background", *_GUT)
        possible[found.left] = bit("lung_left")
        possible[found.right] = bit("lung_right")
        for name, other, side in (("lung_left", "lung_right", found.left), ("lung_right", "lung_left", found.right)):
            opposite = found.right if side is found.left else found.left
            closed = ndi.binary_closing(np.pad(side, 3), ball(2))[3:-3, 3:-3, 3:-3]
            vessels = closed & ~found.both & (hu < 100)
            possible[vessels] &= bit("background", name, "heart", "esophagus", "aorta")
            possible[within(side, 3) & ~within(opposite, 5)] &= without(other)
        possible[found.airway] = bit("background")

    fat = inside & (low > -145) & (high < -55)
    possible[fat & ~found_bone.possible] = bit("background")
    possible[fat & found_bone.possible] &= bit("background", "vertebrae", "bone")
    # Gallbladder, bladder and vessels can hold contrast or stones; these three cannot be so dense or so light.
    possible[inside & ((low > 400) | (high < -60))] &= without("liver", "spleen", "pancreas")

    possible[_back(inside, found_bone.spine)] &= bit("background", "vertebrae", "bone", "lung_left", "lung_right")

    dense = found_bone.certain & found_bone.possible
    possible[dense] = _bone_bits(hu.shape, found_bone.spine, sacrum_top)[dense]
    marrow = found_bone.possible & ~dense & inside
    possible[marrow] &= _bone_bits(hu.shape, found_bone.spine, sacrum_top)[marrow] | without("vertebrae", "bone")
    return Findings(possible, inside, found, found_bone, notes)


def _back(inside: np.ndarray, spine: np.ndarray) -> np.ndarray:
    """Behind the vertebral canal, near the midline: muscle and bone, no organ."""
    result = np.zeros(inside.shape, bool)
    i, j = np.arange(inside.shape[0])[:, None], np.arange(inside.shape[1])[None, :]
    for k in range(inside.shape[2]):
        if not np.isnan(spine[k, 0]):
            result[:, :, k] = (j < spine[k, 1] - 1) & (np.abs(i - spine[k, 0]) < 12)
    return result & inside


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
