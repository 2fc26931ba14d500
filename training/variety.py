"""What differs from patient to patient beside the organs: fat, bowel, arms, the table. All change fine maps."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from training import tissues as t
from training.rendering import smooth_noise


def fat_layer(fine: np.ndarray, change: float, rng: np.random.Generator) -> np.ndarray:
    """Thickens (change > 0, voxels) or thins (< 0) the fat under the skin, more on one side than on another.

    Returns a uint8 map; where fat is added at the ends of axes 0 and 1 the lattice grows.
    """
    grow = int(np.ceil(max(0.0, change) * 1.6)) + 1
    fine = np.pad(fine, ((grow, grow), (grow, grow), (0, 0)), constant_values=t.OUTSIDE)
    body = fine != t.OUTSIDE
    field = np.clip(change * (1 + 0.3 * smooth_noise(fine.shape, 20, rng)), -abs(change) * 1.6, abs(change) * 1.6)
    if change > 0:
        away = np.empty(fine.shape, np.float32)
        for k in range(fine.shape[2]):
            away[:, :, k] = ndimage.distance_transform_edt(~body[:, :, k])
        fine[fine == t.SKIN] = t.FAT
        added = ~body & (away <= field)
        fine[added] = t.FAT
    else:
        depth = np.empty(fine.shape, np.float32)
        for k in range(fine.shape[2]):
            depth[:, :, k] = ndimage.distance_transform_edt(body[:, :, k])
        # Only fat goes: where muscle or bone comes to the surface, the surface stays.
        solid = ~np.isin(fine, (t.FAT, t.SKIN, t.OUTSIDE))
        solid = ndimage.binary_dilation(solid, iterations=2)
        fine[(depth <= -field) & ~solid] = t.OUTSIDE
    return skin(fine)


def skin(fine: np.ndarray) -> np.ndarray:
    """Turns the outermost voxels of fat into skin; in place."""
    air = fine == t.OUTSIDE
    near = np.zeros_like(air)
    near[1:] |= air[:-1]
    near[:-1] |= air[1:]
    near[:, 1:] |= air[:, :-1]
    near[:, :-1] |= air[:, 1:]
    fine[near & (fine == t.FAT)] = t.SKIN
    return fine


def swell(fine: np.ndarray, code: int, steps: int, field: np.ndarray) -> None:
    """Grows a structure into the fat around it where `field` > 0, or shrinks it (steps < 0); in place."""
    fat = np.isin(fine, (t.FAT, t.CAVITY))
    mask = fine == code
    box = ndimage.find_objects(mask.astype(np.uint8))
    if not box:
        return
    spot = tuple(slice(max(0, s.start - 4), s.stop + 4) for s in box[0])
    mask, fat, part = mask[spot], fat[spot], fine[spot]
    if steps > 0:
        grown = ndimage.binary_dilation(mask, iterations=steps, mask=mask | (fat & (field[spot] > 0)))
        part[grown & ~mask] = code
    else:
        kept = ndimage.binary_erosion(mask, iterations=-steps, border_value=1)
        part[mask & ~kept] = t.CAVITY


def new_small_bowel(fine: np.ndarray, rng: np.random.Generator) -> None:
    """Replaces the loops of the small bowel by new ones, drawn into the fat between the organs; in place."""
    old = fine == t.SMALL_BOWEL
    box = ndimage.find_objects(old.astype(np.uint8))
    if not box:
        return
    spot = tuple(slice(max(0, s.start - 6), s.stop + 6) for s in box[0])
    part = fine[spot]
    old = part == t.SMALL_BOWEL
    part[old] = t.CAVITY
    room = part == t.CAVITY
    # Keep to the middle of the belly: near where loops were, not behind the kidneys.
    near = ndimage.binary_closing(np.pad(old, 8), iterations=6)[8:-8, 8:-8, 8:-8]
    room &= ndimage.binary_dilation(near, iterations=2)
    grain = rng.uniform(4.5, 6.5)
    a, b = smooth_noise(part.shape, grain, rng), smooth_noise(part.shape, grain, rng)
    loops = ndimage.binary_opening((a**2 + b**2 < rng.uniform(0.5, 0.95) ** 2) & room)
    part[loops] = t.SMALL_BOWEL


def add_arms(fine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Arms beside the trunk, over all slices or the lower or upper part of them; the lattice grows sideways."""
    body = fine != t.OUTSIDE
    rows = np.nonzero(body.any((1, 2)))[0]
    width = rows[-1] - rows[0]
    radius = rng.uniform(9, 14)
    pad = int(2 * radius + 10)
    fine = np.pad(fine, ((pad, pad), (0, 0), (0, 0)), constant_values=t.OUTSIDE)
    size = fine.shape
    x, y = np.indices(size[:2], np.float32)
    gap = rng.uniform(0, 4)
    for side in (-1, 1):
        i0 = pad + (rows[0] + rows[-1]) / 2 + side * (width / 2 + radius + gap)
        j0 = 0.35 * size[1] + rng.normal(0, 5)
        lean, deep = rng.normal(0, 0.04), rng.normal(0, 0.1)
        fat = rng.uniform(1, 3)
        for k in range(size[2]):
            r = np.hypot(x - (i0 + lean * (k - size[2] / 2)), y - (j0 + deep * (k - size[2] / 2)))
            part = fine[:, :, k]
            free = part == t.OUTSIDE
            part[free & (r <= radius)] = t.FAT
            part[free & (r <= radius - fat)] = t.MUSCLE
            part[free & (r <= 3.6)] = t.BONE
    return skin(fine)


def add_table(fine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A scanner table behind the patient: a thin curved shell; the lattice grows backward."""
    pad = int(rng.integers(8, 16))
    fine = np.pad(fine, ((0, 0), (pad, 0), (0, 0)), constant_values=t.OUTSIDE)
    lowest = np.nonzero((fine != t.OUTSIDE).any((0, 2)))[0][0]
    x = np.arange(fine.shape[0], dtype=np.float32) - fine.shape[0] / 2 + rng.normal(0, 4)
    curve = lowest - rng.uniform(1, 4) + rng.uniform(0, 0.0035) * x**2
    y = np.arange(fine.shape[1])
    thick = rng.uniform(0.8, 2.2)
    shell = np.abs(y[None, :] - curve[:, None]) < thick / 2
    if rng.random() < 0.5:  # the underside
        shell |= np.abs(y[None, :] - (curve[:, None].min() - rng.uniform(4, 10))) < thick / 2
    free = fine == t.OUTSIDE
    fine[shell[:, :, None] & free] = t.TABLE
    return fine


def add_breasts(fine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two mounds of fat with glandular strands on the front of the chest, in the upper slices; may grow forward."""
    pad = 20
    fine = np.pad(fine, ((0, 0), (0, pad), (0, 0)), constant_values=t.OUTSIDE)
    lungs = np.nonzero(np.isin(fine, t.LUNGS).any((0, 1)))[0]
    if lungs.size < 12:
        return fine
    k0 = lungs[0] + 0.5 * (lungs[-1] - lungs[0]) + rng.normal(0, 4)
    body = fine != t.OUTSIDE
    rows = np.nonzero(body.any((1, 2)))[0]
    middle, width = rows.mean(), rows[-1] - rows[0]
    front = np.nonzero(body[:, :, int(min(k0, fine.shape[2] - 1))].any(0))[0][-1]
    x, y, z = np.ogrid[: fine.shape[0], : fine.shape[1], : fine.shape[2]]
    size = rng.uniform(14, 22), rng.uniform(9, 18), rng.uniform(13, 20)
    for side in (-1, 1):
        i0 = middle + side * rng.uniform(0.2, 0.27) * width
        mound = ((x - i0) / size[0]) ** 2 + ((y - (front - 6)) / size[1]) ** 2 + ((z - k0) / size[2]) ** 2 < 1
        fine[mound & ~body] = t.FAT
        gland = mound & ~body & (smooth_noise(fine.shape, 2.5, rng) > rng.uniform(0.8, 1.8))
        fine[gland] = t.SOFT
    return skin(fine)


def add_fluid(fine: np.ndarray, kind: str, rng: np.random.Generator) -> None:
    """Fluid where patients have it; in place. `kind`: "effusion" behind the lungs, "ascites" around the upper organs
    and in the pelvis, "cyst" for a large mass among the bowel."""
    field = smooth_noise(fine.shape, 9, rng)
    if kind == "effusion":
        for code in t.LUNGS if rng.random() < 0.5 else (rng.choice(t.LUNGS),):
            lung = fine == code
            if not lung.any():
                continue
            rows = np.nonzero(lung.any((0, 2)))[0]
            floor = np.nonzero(lung.any((0, 1)))[0][0]
            height = np.arange(fine.shape[2])[None, None, :] - floor
            level = rows[0] + rng.uniform(0.1, 0.45) * (rows[-1] - rows[0]) - 0.25 * height + 1.5 * field
            fine[lung & (np.arange(fine.shape[1])[None, :, None] < level)] = t.FLUID
    elif kind == "ascites":
        organs = np.isin(fine, (t.LIVER, t.SPLEEN, t.SMALL_BOWEL, t.COLON, t.BLADDER))
        reach = ndimage.binary_dilation(organs, iterations=int(rng.integers(2, 6)))
        fine[reach & (fine == t.CAVITY) & (field > rng.uniform(-0.5, 0.8))] = t.FLUID
    else:
        places = np.argwhere(fine == t.SMALL_BOWEL)
        if not len(places):
            return
        radii = rng.uniform(8, 22, 3)
        grid = np.ogrid[tuple(slice(0, n) for n in fine.shape)]
        centre = places[rng.integers(len(places))]
        ball = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) + 0.15 * field < 1
        fine[ball & np.isin(fine, (t.CAVITY, t.SMALL_BOWEL, t.COLON, t.FAT))] = t.FLUID


def vary(fine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One other patient with the same organs: bowel loops, how full the bowel is, fluid, how much fat there is."""
    fine = fine.copy()
    if rng.random() < 0.6:
        new_small_bowel(fine, rng)
    field = smooth_noise(fine.shape, 8, rng) + rng.uniform(-0.5, 1.0)
    for code, chance, steps in (
        (t.SMALL_BOWEL, 0.5, (-1, 1, 2)), (t.COLON, 0.6, (-1, 1, 1, 2)), (t.MUSCLE, 0.35, (-1, 1)),
        (t.BLADDER, 0.4, (-2, -1, 1, 2)),
    ):  # fmt: skip
        if rng.random() < chance:
            swell(fine, code, int(rng.choice(steps)), field)
    for kind, chance in (("effusion", 0.15), ("ascites", 0.12), ("cyst", 0.1)):
        if rng.random() < chance:
            add_fluid(fine, kind, rng)
    if rng.random() < 0.7:
        change = rng.uniform(-5, -1) if rng.random() < 0.5 else rng.uniform(0.5, 8)
        fine = fat_layer(fine, change, rng)
    return fine


def surround(fine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Arms, breasts and table, each sometimes."""
    if rng.random() < 0.2:
        fine = add_breasts(fine, rng)
    if rng.random() < 0.12:
        fine = add_arms(fine, rng)
    if rng.random() < 0.6:
        fine = add_table(fine, rng)
    return fine
