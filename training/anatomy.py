"""Complete anatomy around expert organ maps: a labelled body is fitted to them, and what is left open is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, signal

from training import chest
from training import tissues as t
from training.template import Template

EXPERT = (t.SPLEEN, t.KIDNEY_LEFT, t.GALLBLADDER, t.LIVER, t.STOMACH, t.PANCREAS, t.DUODENUM, t.ESOPHAGUS)
_SPINE = (t.VERTEBRAE, t.CANAL, t.DISC, t.SACRUM)
_REPLACED = (*EXPERT, t.KIDNEY_RIGHT, t.AORTA, t.VENA_CAVA, *t.LUNGS, t.HEART, t.ADRENAL, t.TOP_SOFT)
ANGLES = 72


@dataclass(frozen=True)
class Frame:
    """Axis-wise fit: template voxel = (voxel - here) / scale + there."""

    here: np.ndarray
    there: np.ndarray
    scale: np.ndarray
    shape: tuple[int, int, int]

    def axes(self) -> list[np.ndarray]:
        return [(np.arange(n) - h) / s + w for n, h, s, w in zip(
            self.shape, self.here, self.scale, self.there, strict=True)]

    def to_here(self, point) -> np.ndarray:
        return (np.asarray(point, float) - self.there) * self.scale + self.here


def _range(mask: np.ndarray, axis: int) -> tuple[int, int]:
    hit = np.nonzero(mask.any(tuple(a for a in range(3) if a != axis)))[0]
    return int(hit[0]), int(hit[-1])


def _marks(fine: np.ndarray) -> dict[str, float]:
    """Positions shared by both bodies (voxels): of the left kidney, and the outer faces of the upper organs."""
    kidney, liver, spleen = fine == t.KIDNEY_LEFT, fine == t.LIVER, fine == t.SPLEEN
    front = np.isin(fine, (t.LIVER, t.STOMACH, t.PANCREAS))
    right, left = _range(liver, 0)[1], min(_range(spleen, 0)[0], _range(fine == t.STOMACH, 0)[0])
    low, high = _range(kidney, 2)
    return {
        "middle": 0.6 * (right + left) / 2 + 0.4 * (_range(kidney, 0)[1] + 13),
        "width": right - left, "kidney_y": float(np.nonzero(kidney)[1].mean()),
        "kidney_z": (low + high) / 2, "kidney_length": high - low + 1,
        "depth": _range(front, 1)[1] - _range(kidney, 1)[0],
    }  # fmt: skip


def _fit(organs: np.ndarray, template: Template, top: int, rng: np.random.Generator) -> tuple[Frame, np.ndarray]:
    """The frame, and the organs moved into its lattice, which reaches from the template's floor to `top` voxels
    above the highest organ."""
    ours, theirs = _marks(organs), _marks(template.fine)
    scale = np.array([
        np.clip(ours["width"] / theirs["width"], 0.78, 1.25),
        np.clip(ours["depth"] / theirs["depth"], 0.78, 1.25),
        np.clip(0.5 + 0.5 * ours["kidney_length"] / theirs["kidney_length"], 0.88, 1.15),
    ]) * rng.uniform(0.97, 1.03, 3)
    there = np.array([theirs["middle"], theirs["kidney_y"], theirs["kidney_z"]])
    here = np.array([ours["middle"], ours["kidney_y"], ours["kidney_z"]]) + rng.normal(0, 1, 3)
    # The lattice: the template's box in the plane with air around it, its floor below, `top` above.
    size = np.array(template.fine.shape)
    low = np.floor(here - there * scale - (14, 14, 0)).astype(int)
    high = np.ceil(here + (size - there) * scale + (14, 14, 0)).astype(int)
    high[2] = _range(organs > 0, 2)[1] + top
    shape = tuple(int(n) for n in high - low)
    moved = np.zeros(shape, np.uint8)
    src = [slice(max(0, lo), min(n, hi)) for lo, hi, n in zip(low, high, organs.shape, strict=True)]
    dst = [slice(s.start - lo, s.stop - lo) for s, lo in zip(src, low, strict=True)]
    moved[tuple(dst)] = organs[tuple(src)]
    return Frame(here - low, there, scale, shape), moved


def _outer_radius(mask: np.ndarray, angle: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Largest radius of the mask per angle bin and slice: (ANGLES, K), 0 where the mask has none."""
    result = np.zeros((ANGLES, mask.shape[2]), np.float32)
    i, j, k = np.nonzero(mask)
    np.maximum.at(result, (angle[i, j], k), radius[i, j])
    return result


def _radial(organs: np.ndarray, inner: np.ndarray, centre: tuple[float, float], wall: np.ndarray):
    """How far the body wall must move outward or inward per angle and slice for the organs to lie just inside it.

    Returns (ratio (ANGLES, K), radius of the template's inner face (ANGLES, K), angle bins and radius per (i, j)).
    """
    x = np.arange(organs.shape[0])[:, None] - centre[0]
    y = np.arange(organs.shape[1])[None, :] - centre[1]
    radius = np.hypot(x, y).astype(np.float32)
    angle = ((np.arctan2(y, x) + np.pi) / (2 * np.pi) * ANGLES).astype(int) % ANGLES
    # Gaps between the template's organs are no reason to call its wall near: take the widest of the neighbours.
    theirs = ndimage.maximum_filter(_outer_radius(inner, angle, radius), (7, 3), mode=("wrap", "nearest"))
    theirs = np.maximum(ndimage.gaussian_filter(theirs, (1.5, 1.0), mode=("wrap", "nearest")), 12)
    need = _outer_radius(organs, angle, radius)
    edge = _outer_radius(wall, angle, radius)
    need = ndimage.maximum_filter(np.where(need > 0, need + 2, 0), (3, 3), mode=("wrap", "nearest"))
    # The dome leaves the wall upward: the wall follows the widest liver and spleen within a hand's breadth.
    edge = np.where(edge > 0, ndimage.maximum_filter1d(edge, 41, axis=1, mode="nearest") + 2, 0)
    bins = -np.pi + (np.arange(ANGLES) + 0.5) * 2 * np.pi / ANGLES
    side = np.abs(np.cos(bins))[:, None] > 0.3
    log = np.zeros_like(theirs)
    grow = need > theirs
    log[grow] = np.log(need[grow] / theirs[grow])
    shrink = (edge > 0) & (edge < theirs) & side
    log[shrink] = np.log(np.maximum(edge[shrink], 12) / theirs[shrink])
    sure = (grow | shrink).astype(np.float32) + 0.02
    back = np.abs(bins + np.pi / 2) < np.deg2rad(38)
    log[back], sure[back] = 0, 1
    # Above the organs the chest goes on as wide as it was beside them.
    last = int(np.nonzero((sure > 0.5).any(0))[0][-1]) if (sure > 0.5).any() else log.shape[1]
    near = slice(max(0, last - 12), last + 1)
    weight = sure[:, near].sum(1, keepdims=True)
    log[:, last + 1 :] = (log[:, near] * sure[:, near]).sum(1, keepdims=True) / weight
    sure[:, last + 1 :] = np.where(weight > 0.5, 0.6, 0.02)
    log[back] = 0
    spread = {"sigma": (4.5, 8.0), "mode": ("wrap", "nearest")}
    log = ndimage.gaussian_filter(log * sure, **spread) / ndimage.gaussian_filter(sure, **spread)
    return np.exp(np.clip(log, -0.22, 0.45)), theirs, angle, radius


def _sample(volume: np.ndarray, where: list[np.ndarray], outside: int = 0) -> np.ndarray:
    index = [np.rint(w).astype(np.int32) for w in where]
    keep = np.ones(np.broadcast_shapes(*(w.shape for w in index)), bool)
    for w, n in zip(index, volume.shape, strict=True):
        keep &= (w >= 0) & (w < n)
    taken = volume[tuple(np.clip(w, 0, n - 1) for w, n in zip(index, volume.shape, strict=True))]
    return np.where(keep, taken, np.array(outside, volume.dtype))


def place_kidney(fine: np.ndarray, kidney: np.ndarray, expected: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Puts a mirrored copy of the left kidney where it fits on the right.

    Args:
        fine: the body so far (I, J, K); organs, spine, bone and wall are obstacles.
        kidney: bool (I, J, K), the left kidney.
        expected: voxel where its centre should lie.

    Returns:
        bool (I, J, K) mask of the right kidney, free of obstacles.
    """
    box = ndimage.find_objects(kidney.astype(np.uint8))[0]
    shape = np.pad(kidney[box][::-1], 4).astype(np.float32)
    turn = rng.normal(0, 6)
    shape = ndimage.rotate(shape, turn, axes=(0, 2), reshape=False, order=1)
    zoom = rng.uniform(0.9, 1.08, 3)
    shape = ndimage.zoom(shape, zoom, order=1) > 0.5
    hard = np.isin(fine, (*range(1, 9), t.VERTEBRAE, t.BONE, t.CANAL, t.SACRUM, t.AORTA, t.OUTSIDE))
    cost = hard.astype(np.float32) + 0.25 * (fine == t.MUSCLE)
    reach = np.array((8, 8, 14))
    low = np.rint(expected - np.array(shape.shape) / 2 - reach).astype(int)
    size = np.array(shape.shape) + 2 * reach
    block = np.ones(size, np.float32)
    src = [slice(max(0, a), max(0, min(n, a + s))) for a, s, n in zip(low, size, fine.shape, strict=True)]
    dst = [slice(s.start - a, s.stop - a) for s, a in zip(src, low, strict=True)]
    block[tuple(dst)] = cost[tuple(src)]
    overlap = signal.fftconvolve(block, shape[::-1, ::-1, ::-1].astype(np.float32), mode="valid") / max(1, shape.sum())
    steps = np.meshgrid(*(np.arange(n) - n // 2 for n in overlap.shape), indexing="ij")
    far = sum((s / w) ** 2 for s, w in zip(steps, (7, 7, 12), strict=True))
    best = np.unravel_index(np.argmin(overlap + 0.06 * far), overlap.shape)
    start = low + np.array(best)
    result = np.zeros(fine.shape, bool)
    src = [slice(max(0, a), max(0, min(n, a + s))) for a, s, n in zip(start, shape.shape, fine.shape, strict=True)]
    dst = [slice(s.start - a, s.stop - a) for s, a in zip(src, start, strict=True)]
    result[tuple(src)] = shape[tuple(dst)]
    result &= ~hard
    pieces, count = ndimage.label(result)
    if count > 1:
        result = pieces == np.argmax(np.bincount(pieces.ravel())[1:]) + 1
    return result


def tube(fine: np.ndarray, path: np.ndarray, radius: np.ndarray, blocked: np.ndarray, weight: float = 3.0):
    """A vessel along z whose centre keeps near `path` and out of what is blocked.

    Args:
        path: (K, 2) expected centre per slice in voxels, NaN where the vessel is not.
        radius: (K,) voxels.
        blocked: bool (I, J, K).

    Returns:
        bool (I, J, K).
    """
    shape = fine.shape
    centre = path.copy()
    steps = np.arange(-5, 6)
    dx, dy = np.meshgrid(steps, steps, indexing="ij")
    for k in np.nonzero(~np.isnan(path[:, 0]))[0]:
        soft = ndimage.uniform_filter(blocked[:, :, k].astype(np.float32), 2 * round(float(radius[k])) + 1)
        i = np.clip(np.rint(path[k, 0] + dx).astype(int), 0, shape[0] - 1)
        j = np.clip(np.rint(path[k, 1] + dy).astype(int), 0, shape[1] - 1)
        best = np.argmin(weight * soft[i, j] + 0.01 * (dx**2 + dy**2))
        centre[k] += (dx.ravel()[best], dy.ravel()[best])
    known = ~np.isnan(path[:, 0])
    for axis in range(2):
        centre[known, axis] = ndimage.gaussian_filter1d(centre[known, axis], 3, mode="nearest")
    x, y = np.arange(shape[0])[:, None, None], np.arange(shape[1])[None, :, None]
    with np.errstate(invalid="ignore"):
        return (x - centre[None, None, :, 0]) ** 2 + (y - centre[None, None, :, 1]) ** 2 <= radius**2


def complete_anatomy(organs: np.ndarray, template: Template, rng: np.random.Generator) -> np.ndarray:
    """Invents the body around an expert organ map.

    Args:
        organs: uint8 (I, J, K), RAS+, 3 mm; class values of the expert's organs (left kidney, liver, spleen and
            stomach must be there), 0 elsewhere.
        template: the labelled body that is fitted around them.
        rng: the only source of chance.

    Returns:
        uint8 fine map (I', J', K') on a larger lattice of the same axes and spacing.
    """
    frame, organs = _fit(organs, template, int(rng.integers(18, 60)), rng)
    x, y, z = frame.axes()
    # Above the labelled body its uppermost slices repeat: vertebra by vertebra, the wall as it is.
    body = chest.Upward(template)
    centre = frame.to_here((template_middle(template), 50, 0))[:2]
    fine, cavity = body.sample(x[:, None, None], y[None, :, None], z[None, None, :])
    inner = cavity | np.isin(fine, (*range(1, 11),))
    ratio, radius_there, angle, radius = _radial(
        organs > 0, inner, centre, np.isin(organs, (t.LIVER, t.SPLEEN, t.STOMACH)))
    ratio, radius_there = ratio[angle], radius_there[angle]
    r = radius[:, :, None]
    inside = r <= radius_there * ratio
    factor = np.where(inside, 1 / ratio, 1 - radius_there * (ratio - 1) / np.maximum(r, 1))
    cx, cy = template_middle(template), 50.0
    xs = (x[:, None, None] - cx) * factor + cx
    ys = (y[None, :, None] - cy) * factor + cy
    fine, cavity = body.sample(xs, ys, np.broadcast_to(z[None, None, :], xs.shape))

    fine = _rounded(fine)
    fine[np.isin(fine, _REPLACED)] = t.CAVITY
    fine[cavity & (fine == t.FAT)] = t.CAVITY
    spine = np.isin(fine, _SPINE)
    expert = (organs > 0) & ~spine
    skin = ndimage.binary_dilation(ndimage.binary_closing(expert, iterations=3), iterations=4)
    fine[skin & (fine == t.OUTSIDE)] = t.FAT
    fine[expert] = organs[expert]

    middle = float(frame.here[0])
    front = chest.spine_front(np.isin(fine, (t.VERTEBRAE, t.SACRUM)), middle)
    level = frame.to_here((0, 0, 61))[2]  # where the aorta divides
    chest.add_chest(fine, organs, cavity, middle, front, rng)
    _add_vessels(fine, expert, middle, front, level, rng)
    kidney = organs == t.KIDNEY_LEFT
    there = np.array([a.mean() for a in np.nonzero(kidney)])
    expected = np.array([2 * middle - there[0], there[1], there[2] - rng.uniform(0, 6)])
    right = place_kidney(fine, kidney, expected, rng)
    fine[right] = t.KIDNEY_RIGHT
    return fine


def _rounded(fine: np.ndarray) -> np.ndarray:
    """Smooths the body's outline, which sampling left ragged; in place."""
    body = ndimage.gaussian_filter((fine != t.OUTSIDE).astype(np.float32), (2.0, 2.0, 1.5), truncate=2.5) > 0.5
    fine[~body & np.isin(fine, (t.SKIN, t.FAT, t.MUSCLE))] = t.OUTSIDE
    fine[body & (fine == t.OUTSIDE)] = t.FAT
    return fine


def template_middle(template: Template) -> float:
    """i of the spine in the template (voxels)."""
    return float(np.nonzero(template.fine == t.CANAL)[0].mean())


def _add_vessels(fine, expert, middle, front, level, rng) -> None:
    size = fine.shape[2]
    z = np.arange(size)
    on = (z >= level) & ~np.isnan(front)
    wide = rng.uniform(3.2, 4.4)
    radius = np.full(size, wide) + 0.25 * np.clip((z - level) / 60, 0, 2)
    hard = np.isin(fine, (t.VERTEBRAE, t.CANAL, t.SACRUM, t.BONE))
    path = np.stack([middle - rng.uniform(1, 5) - np.clip((z - level) / 25, 0, 3), front + wide], 1)
    path[~on] = np.nan
    aorta = tube(fine, path, radius, expert | hard)
    heart = np.nonzero((fine == t.HEART).any((0, 1)))[0]
    top = heart[0] + 6 if heart.size else size
    wide = rng.uniform(3.0, 4.6)
    rise = np.clip((z - (top - 25)) / 25, 0, 1.2)
    path = np.stack([middle + rng.uniform(6, 9) - rise, front + wide - 1 + 7 * rise], 1)
    path[~on | (z > top)] = np.nan
    cava = tube(fine, path, np.full(size, wide), (expert & (fine != t.LIVER)) | hard | aorta, 2.0)
    keep = ~expert & ~hard & (fine != t.OUTSIDE)
    fine[aorta & keep] = t.AORTA
    fine[cava & (keep | (fine == t.LIVER)) & ~aorta & ~hard & (fine != t.HEART)] = t.VENA_CAVA
