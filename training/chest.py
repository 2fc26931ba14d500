"""What lies above the labelled abdomen: spine and wall carried upward, ribs, lungs on the diaphragm, heart."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from training import tissues as t
from training.template import Template, hull

_SPINE = (t.VERTEBRAE, t.CANAL, t.DISC)
RIB_STEP = 9.0  # voxels between one rib and the next
TOP_MARGIN = 3  # slices at the template's top that are not used: its ends are ragged


class Upward:
    """A template continued upward without end, sampled at any (fractional) template voxel."""

    def __init__(self, template: Template) -> None:
        fine = template.fine
        self.fine, self.cavity = fine, template.cavity
        self.top = fine.shape[2] - 1 - TOP_MARGIN
        spine = np.isin(fine, _SPINE)
        self.block = np.where(spine, fine, 0)
        self.period = 11
        wall = fine[:, :, self.top].copy()
        cavity = hull(template.cavity[:, :, self.top])
        wall[np.isin(wall, (*range(1, 17), t.VEIN, t.ADRENAL, t.ESOPHAGUS))] = t.CAVITY
        wall[np.isin(wall, (t.BONE, t.CARTILAGE))] = t.MUSCLE
        wall[np.isin(wall, _SPINE)] = t.MUSCLE
        wall[cavity & (wall != t.MUSCLE)] = t.CAVITY
        self.wall, self.wall_cavity = wall, cavity
        # Distance outward from the cavity, and how far round to the front: both shape the ribs.
        self.outward = ndimage.distance_transform_edt(~cavity)
        centre = np.argwhere(cavity).mean(0)
        x, y = np.indices(cavity.shape)
        self.round = np.abs(np.arctan2(x - centre[0], -(y - centre[1])))  # 0 at the back, pi in front

    def sample(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fine codes and cavity (bool) at template voxels (x, y, z), broadcast together."""
        x, y, z = np.broadcast_arrays(np.rint(x).astype(np.int32), np.rint(y).astype(np.int32), z)
        k = np.rint(z).astype(np.int32)
        nx, ny, _ = self.fine.shape
        inside = (x >= 0) & (x < nx) & (y >= 0) & (y < ny) & (k >= 0)
        i, j = np.clip(x, 0, nx - 1), np.clip(y, 0, ny - 1)
        above = k > self.top
        low = np.clip(k, 0, self.top)
        fine = np.where(above, self.wall[i, j], self.fine[i, j, low])
        cavity = np.where(above, self.wall_cavity[i, j], self.cavity[i, j, low])
        if above.any():
            rise = np.where(above, k - self.top, 0)
            ribs = np.mod(z + 11 * self.round[i, j], RIB_STEP) < 4.2
            shell = (self.outward[i, j] > 0.5) & (self.outward[i, j] < 3.6) & (self.round[i, j] > 0.35)
            body = self.wall[i, j] != t.OUTSIDE
            fine = np.where(above & ribs & shell & body, np.where(self.round[i, j] > 2.6, t.CARTILAGE, t.BONE), fine)
            back = np.clip(rise // 7, 0, 6)
            slot = self.top - self.period + 1 + np.mod(rise - 1, self.period)
            spine = np.where(above, self.block[i, np.clip(j + back, 0, ny - 1), np.clip(slot, 0, self.top)], 0)
            fine = np.where(spine > 0, spine, fine)
            cavity = cavity & (spine == 0)
        fine = np.where(inside, fine, t.OUTSIDE).astype(np.uint8)
        return fine, cavity & inside


def spine_front(vertebrae: np.ndarray, middle: float) -> np.ndarray:
    """Front (j) of the vertebral bodies near the midline per slice, smoothed; NaN where there is no spine."""
    low, high = int(middle) - 4, int(middle) + 5
    strip = vertebrae[low:high].any(0)
    front = np.where(strip.any(0), strip.shape[0] - 1 - np.argmax(strip[::-1], axis=0), -1).astype(float)
    known = front >= 0
    if known.sum() < 2:
        return np.full(front.shape, np.nan)
    filled = np.interp(np.arange(front.size), np.nonzero(known)[0], front[known])
    return ndimage.gaussian_filter1d(ndimage.maximum_filter1d(filled, 7), 3)


def diaphragm(organs: np.ndarray) -> np.ndarray:
    """Height (k) of the diaphragm over every column (I, J): the tops of the organs under it, spread and smoothed."""
    under = np.isin(organs, (t.LIVER, t.SPLEEN, t.STOMACH))
    kidney = organs == t.KIDNEY_LEFT
    top = np.where(under.any(2), under.shape[2] - 1 - np.argmax(under[:, :, ::-1], axis=2), -1).astype(np.float32)
    tall = np.where(kidney.any(2), kidney.shape[2] - 1 - np.argmax(kidney[:, :, ::-1], axis=2) + 4, -1)
    top = np.maximum(top, tall)
    nearest = ndimage.distance_transform_edt(top < 0, return_distances=False, return_indices=True)
    top = top[tuple(nearest)]
    # A sheet under tension bridges the dips between the organs: closing with a ball of 45 mm radius.
    reach, ball = 9, 15.0
    grid = np.indices((2 * reach + 1,) * 2) - reach
    cap = np.sqrt(ball**2 - (grid**2).sum(0)) - ball
    closed = ndimage.grey_closing(np.pad(top, reach, mode="edge"), structure=cap)[reach:-reach, reach:-reach]
    return ndimage.gaussian_filter(np.maximum(top, closed), 1.5)


def add_chest(
    fine: np.ndarray, organs: np.ndarray, cavity: np.ndarray, middle: float, front: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Lungs, mediastinum, heart and gullet, drawn in place above the organs.

    Args:
        fine: fine map (I, J, K), changed in place.
        organs: the expert organs on the same lattice.
        cavity: bool, room inside the ribs.
        middle: i of the spine.
        front: (K,) j of the vertebral fronts.
    """
    size = fine.shape
    x = (np.arange(size[0], dtype=np.float32) - middle)[:, None, None]
    y = np.arange(size[1], dtype=np.float32)[None, :, None]
    z = np.arange(size[2], dtype=np.float32)[None, None, :]
    dome = diaphragm(organs)
    free = cavity & np.isin(fine, (t.CAVITY, t.FAT)) & (organs == 0)
    over = free & (z > dome[:, :, None] + 1)
    front = np.where(np.isnan(front), np.nanmean(front) if np.isfinite(front).any() else 0.4 * size[1], front)
    ahead = y - front[None, None, :]
    half = rng.uniform(6, 9) + 0.10 * np.clip(ahead, 0, 30) * rng.uniform(0, 1)
    mediastinum = over & (np.abs(x + 1) < half) & ((ahead < 22) | (np.abs(x + 1) < half * 0.4))
    lung = over & ~mediastinum
    fine[mediastinum] = t.CAVITY
    fine[lung & (x < 0)] = t.LUNG_LEFT  # i grows towards the patient's right
    fine[lung & (x >= 0)] = t.LUNG_RIGHT

    # The heart lies on the middle of the diaphragm, two thirds of it left of the midline.
    deep = np.nonzero(cavity.any((0, 2)))[0]
    if deep.size and over.any():
        a, b, c = rng.uniform(17, 24), rng.uniform(13, 19), rng.uniform(14, 20)
        i0, j0 = middle - rng.uniform(5, 10), front.mean() + 0.6 * (deep[-1] - front.mean()) + rng.normal(0, 1.5)
        spot = dome[max(0, int(i0) - 6): int(i0) + 7, max(0, int(j0) - 6): int(j0) + 7]
        k0 = float(np.median(spot)) + c - 3
        u, v, w = x + middle - i0, y - j0, z - k0
        tilt = np.deg2rad(rng.uniform(20, 45))
        along = u * np.cos(tilt) + w * np.sin(tilt)
        across = -u * np.sin(tilt) + w * np.cos(tilt)
        heart = (along / a) ** 2 + (v / b) ** 2 + (across / c) ** 2 < 1
        fine[heart & free & (z > dome[:, :, None])] = t.HEART
        # Great vessels and windpipe above it.
        for code, di, dj, r in ((t.PULMONARY, -4, 4, 4.5), (t.PULMONARY, 5, 3, 3.5), (t.AIRWAY, 0, -6, 3.0)):
            path = (x + middle - (middle + di)) ** 2 + (y - (j0 + dj)) ** 2 < r**2
            fine[path & mediastinum & (z > k0 + c * 0.8)] = code
    _add_gullet(fine, organs, over, middle, front)


def _add_gullet(fine, organs, over, middle, front) -> None:
    """Carries the esophagus from its highest expert slice upward, towards the midline in front of the spine."""
    known = np.nonzero((organs == t.ESOPHAGUS).any((0, 1)))[0]
    if not known.size:
        return
    last = known[-1]
    i, j = (a.mean() for a in np.nonzero(organs[:, :, last] == t.ESOPHAGUS))
    x, y = np.indices(fine.shape[:2])
    for k in range(last + 1, fine.shape[2]):
        i += 0.08 * (middle - 1 - i)
        j += 0.08 * (front[k] + 6 - j)
        disc = (x - i) ** 2 + (y - j) ** 2 <= 2.6**2
        fine[:, :, k][disc & ~np.isin(fine[:, :, k], (*_SPINE, t.HEART, t.LIVER, t.STOMACH))] = t.ESOPHAGUS
