"""CT-like images drawn from fine maps (see training/tissues.py): HU per tissue, contents of organs, blur and noise."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from training import tissues as t
from training.lattice import SPACING
from training.tissues import Look, draw_look

AIR_HU = -1000.0


def smooth_noise(shape: tuple[int, ...], grain: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian random field, float32, mean 0, standard deviation 1, correlated over about `grain` voxels.

    Sums Gaussian bumps on a lattice `grain` apart: separable, so even long grains cost a few small matrix products.
    Below one voxel it is filtered white noise, whose deviation falls with the grain.
    """
    if grain < 1:
        return ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), grain)
    bases = []
    for length in shape:
        centres = np.arange(-2 * grain + rng.uniform(0, grain), length + 2 * grain, grain)
        bump = np.exp(-0.5 * ((np.arange(length)[:, None] - centres[None, :]) / grain) ** 2)
        bases.append((bump / np.sqrt((bump**2).sum(1, keepdims=True))).astype(np.float32))
    values = rng.standard_normal([basis.shape[1] for basis in bases], np.float32)
    for axis, basis in enumerate(bases):
        values = np.moveaxis(np.tensordot(basis, values, axes=(1, axis)), 0, axis)
    return values


def _boxes(fine: np.ndarray, margin: int = 3) -> dict[int, tuple[slice, ...]]:
    found = {}
    for index, box in enumerate(ndimage.find_objects(fine, max_label=t.FINE_CODES), start=1):
        if box is not None:
            found[index] = tuple(
                slice(max(0, s.start - margin), min(n, s.stop + margin)) for s, n in zip(box, fine.shape, strict=True)
            )
    return found


def _inner_distance(mask: np.ndarray) -> np.ndarray:
    """Distance in voxels from each voxel of the mask to its border; the array's own ends are no border."""
    padded = np.pad(mask, 2, mode="edge")
    return ndimage.distance_transform_edt(padded)[2:-2, 2:-2, 2:-2].astype(np.float32)


def _level(mask: np.ndarray, share: float) -> float:
    """Height along A (axis 1) with `share` of the mask anterior to it: patients lie on their backs, gas is in front."""
    counts = np.cumsum(mask.sum((0, 2))[::-1])[::-1]
    above = np.nonzero(counts <= share * counts[0])[0]
    return float(above[0]) if above.size else float(mask.shape[1])


class _Painter:
    """One drawing in progress: the image, the fields that textures share, and the boxes of the structures."""

    def __init__(self, fine: np.ndarray, look: Look, rng: np.random.Generator) -> None:
        self.fine, self.look, self.rng = fine, look, rng
        hu = np.where(np.isnan(look.hu), 30.0, look.hu).astype(np.float32)
        self.image = hu[fine]
        self.boxes = _boxes(fine)
        shape = fine.shape
        self.fine_field = smooth_noise(shape, 1.0, rng)
        self.coarse_field = smooth_noise(shape, 3.0, rng)
        self.vessel_a = smooth_noise(shape, 3.2, rng)
        self.vessel_b = smooth_noise(shape, 3.2, rng)

    def part(self, code: int) -> tuple[tuple[slice, ...], np.ndarray] | None:
        box = self.boxes.get(code)
        return None if box is None else (box, self.fine[box] == code)

    def vessels(self, box: tuple[slice, ...], radius: float) -> np.ndarray:
        """Thin winding tubes: where two smooth fields are both near zero."""
        return self.vessel_a[box] ** 2 + self.vessel_b[box] ** 2 < radius**2

    def texture(self) -> None:
        strength = np.zeros(t.FINE_CODES, np.float32)
        for code, value in t.GRAIN.items():
            strength[code] = value * self.rng.uniform(0.5, 1.5)
        mix = self.rng.uniform(0.3, 0.8)
        self.image += strength[self.fine] * (mix * self.fine_field + (1 - mix) * self.coarse_field)

    def liver(self) -> None:
        part = self.part(t.LIVER)
        if part is None:
            return
        box, mask = part
        step = {"plain": -8, "arterial": 10, "portal": 40, "delayed": 20}[self.look.phase]
        vessels = self.vessels(box, self.rng.uniform(0.16, 0.3)) & mask
        self.image[box][vessels] += step * self.rng.uniform(0.5, 1.4)

    def spleen(self) -> None:
        part = self.part(t.SPLEEN)
        if part is not None and self.look.phase == "arterial":
            box, mask = part
            self.image[box][mask] += (self.rng.uniform(10, 35) * self.coarse_field[box])[mask]

    def kidneys(self) -> None:
        rng, phase = self.rng, self.look.phase
        cortex, medulla = {
            "plain": ((22, 42), (22, 42)),
            "arterial": ((150, 240), (55, 110)),
            "portal": ((150, 230), (120, 200)),
            "delayed": ((110, 180), (110, 190)),
        }[phase]
        cortex_hu, medulla_hu = rng.uniform(*cortex), rng.uniform(*medulla)
        if phase == "plain":
            medulla_hu = cortex_hu
        urine_hu = rng.uniform(150, 700) if phase == "delayed" and rng.random() < 0.7 else rng.uniform(0, 20)
        thickness = rng.uniform(1.6, 2.8)
        for code in t.KIDNEYS:
            part = self.part(code)
            if part is None:
                continue
            box, mask = part
            inside = _inner_distance(mask)
            values = np.where(inside <= thickness + 0.7 * self.coarse_field[box], cortex_hu, medulla_hu)
            # The sinus: fat and urine in the middle, open to the medial side.
            core = inside > max(3.0, rng.uniform(0.5, 0.75) * inside.max())
            medial = np.arange(mask.shape[0])[:, None, None] - np.mean(np.nonzero(mask)[0])
            core &= (medial if code == t.KIDNEY_LEFT else -medial) > -2
            values = np.where(core, np.where(self.fine_field[box] > 0.2, urine_hu, rng.uniform(-80, 10)), values)
            self.image[box][mask] = (values + 5 * self.fine_field[box])[mask]

    def stomach(self) -> None:
        part = self.part(t.STOMACH)
        if part is None:
            return
        box, mask = part
        rng = self.rng
        inside = _inner_distance(mask)
        wall_hu = rng.uniform(25, 55) if self.look.phase == "plain" else rng.uniform(40, 110)
        kind = rng.choice(("water", "food", "contrast", "collapsed"), p=(0.35, 0.35, 0.15, 0.15))
        mean, spread = {
            "water": (rng.uniform(-5, 25), 5),
            "food": (rng.uniform(10, 60), rng.uniform(10, 40)),
            "contrast": (rng.uniform(120, 400), 20),
            "collapsed": (wall_hu - 8, 10),
        }[str(kind)]
        values = mean + spread * (0.5 * self.coarse_field[box] + 0.5 * self.fine_field[box])
        if kind == "food":
            values = np.where(self.fine_field[box] + self.coarse_field[box] > 2.6, rng.uniform(-700, -150), values)
        lumen = mask & (inside > rng.uniform(1.0, 2.2))
        gas = 0.0 if kind == "collapsed" else rng.choice((0.0, rng.uniform(0.02, 0.6)), p=(0.25, 0.75))
        in_front = np.arange(mask.shape[1])[None, :, None] >= _level(lumen, gas)
        values = np.where(in_front, AIR_HU + rng.uniform(0, 60), values)
        self.image[box][mask] = (wall_hu + 6 * self.fine_field[box])[mask]
        self.image[box][lumen] = values[lumen]

    def bowel(self, code: int) -> None:
        """Wall, and contents that change along the gut: gas, stool or chyme, fluid, oral contrast."""
        part = self.part(code)
        if part is None:
            return
        box, mask = part
        rng = self.rng
        wall_hu = rng.uniform(20, 50) if self.look.phase == "plain" else rng.uniform(35, 120)
        inside = _inner_distance(mask)
        segment = smooth_noise(mask.shape, rng.uniform(5, 9), rng)
        fluid = rng.uniform(0, 40) + 12 * self.fine_field[box]
        stool = rng.uniform(-60, 60) + rng.uniform(20, 90) * (0.6 * self.fine_field[box] + 0.6 * self.coarse_field[box])
        stool = np.where(self.fine_field[box] > 1.3, rng.uniform(-800, -200), stool)
        contrast = rng.uniform(120, 450) + 40 * self.coarse_field[box]
        filled = str(rng.choice(("usual", "contrast"), p=(0.75, 0.25)))
        height = ndimage.gaussian_filter1d(self.coarse_field[box], 2, axis=1)
        if code == t.COLON:
            solid = np.where(segment > rng.uniform(-0.6, 1.2), stool, fluid)
            gas = (segment + 0.35 * height) < rng.uniform(-1.8, 0.0)
            wall = rng.uniform(0.9, 1.5)
        else:
            solid = np.where(segment > rng.uniform(0, 2), wall_hu + 8 * self.fine_field[box], fluid)
            gas = (segment + 0.5 * height) < rng.uniform(-3.2, -1.3)
            wall = rng.uniform(0.9, 2.0)
        if filled == "contrast":
            solid = np.where(segment < rng.uniform(0, 1.5), contrast, solid)
        values = np.where(gas, AIR_HU + rng.uniform(0, 60), solid)
        lumen = mask & (inside > wall)
        self.image[box][mask] = (wall_hu + 10 * self.fine_field[box])[mask]
        self.image[box][lumen] = values[lumen]

    def bladder(self) -> None:
        part = self.part(t.BLADDER)
        if part is None:
            return
        box, mask = part
        inside = _inner_distance(mask)
        self.image[box][mask & (inside <= self.rng.uniform(0.8, 1.8))] = self.rng.uniform(25, 60)
        if self.look.phase == "delayed" and self.rng.random() < 0.6:  # excreted contrast lies at the back
            layer = np.arange(mask.shape[1])[None, :, None] < _level(mask, self.rng.uniform(0.4, 1.0))
            self.image[box][mask & layer & (inside > 1)] = self.rng.uniform(120, 500)

    def heart(self) -> None:
        part = self.part(t.HEART)
        if part is None or self.look.phase == "plain":
            return
        box, mask = part
        muscle = self.rng.uniform(60, 120)
        chambers = smooth_noise(mask.shape, self.rng.uniform(5, 8), self.rng)
        blood = np.where(chambers > 0, self.look.hu[t.AORTA], self.look.hu[t.PULMONARY])
        wall = (np.abs(chambers) < 0.25) | (_inner_distance(mask) < 2.5)
        self.image[box][mask] = np.where(wall, muscle, blood)[mask] + 8 * self.fine_field[box][mask]

    def lungs(self) -> None:
        radius, bright = self.rng.uniform(0.12, 0.28), self.rng.uniform(250, 750)
        slope = self.rng.uniform(0, 1.2)  # HU per voxel: blood sinks to the back
        for code in t.LUNGS:
            part = self.part(code)
            if part is None:
                continue
            box, mask = part
            depth = np.arange(mask.shape[1], 0, -1)[None, :, None] * np.ones(mask.shape, np.float32)
            self.image[box][mask] += (slope * (depth - mask.shape[1] / 2))[mask]
            self.image[box][mask & self.vessels(box, radius)] += bright
            if self.rng.random() < 0.12:  # consolidation or collapse at the back
                patch = smooth_noise(mask.shape, 6, self.rng) + 0.03 * (depth - mask.shape[1] / 2) > 2.0
                self.image[box][mask & patch] = self.rng.uniform(-300, 40)

    def bones(self) -> None:
        rng = self.rng
        cortex, marrow = rng.uniform(350, 900), rng.uniform(80, 280)
        for code in (t.VERTEBRAE, t.BONE, t.SACRUM):
            part = self.part(code)
            if part is None:
                continue
            box, mask = part
            # A shell of one voxel, its strength varied: at 3 mm the cortex is mostly partial volume.
            core = ndimage.binary_erosion(np.pad(mask, 1, mode="edge"))[1:-1, 1:-1, 1:-1]
            shell = (0.45 if code == t.VERTEBRAE else 0.8) * cortex
            values = np.where(core, marrow + 35 * self.fine_field[box], marrow + (shell - marrow) * (
                0.75 + 0.35 * self.coarse_field[box]
            ))
            self.image[box][mask] = np.maximum(values, 40)[mask]

    def fat_strands(self) -> None:
        """Vessels and strands in fat, streaks of fat in muscle, lobules in mixed tissue."""
        for code, radius, value in (
            (t.CAVITY, self.rng.uniform(0.2, 0.4), self.look.hu[t.VEIN]),
            (t.FAT, self.rng.uniform(0.05, 0.14), self.look.hu[t.MUSCLE]),
            (t.MUSCLE, self.rng.uniform(0.05, 0.25), self.look.hu[t.FAT] * 0.7),
        ):
            part = self.part(code)
            if part is not None:
                box, mask = part
                self.image[box][mask & self.vessels(box, radius)] = value

    def lesions(self) -> None:
        """Cysts and tumours: the class of the voxel stays that of the organ."""
        rng = self.rng
        for code, chance in ((t.LIVER, 0.35), (t.KIDNEY_LEFT, 0.25), (t.KIDNEY_RIGHT, 0.25), (t.SPLEEN, 0.1),
                             (t.PANCREAS, 0.12)):  # fmt: skip
            part = self.part(code)
            if part is None or rng.random() > chance:
                continue
            box, mask = part
            places = np.argwhere(mask)
            for _ in range(int(rng.integers(1, 6 if code == t.LIVER else 3))):
                centre = places[rng.integers(len(places))]
                radius = rng.uniform(1.5, 7 if code == t.LIVER else 4)
                low, high = np.maximum(centre - 10, 0), centre + 11
                spot = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
                grid = np.indices(mask[spot].shape, np.float32)
                offset = sum((grid[a] - (centre[a] - low[a])) ** 2 * rng.uniform(0.7, 1.4) for a in range(3))
                ball = mask[spot] & (np.sqrt(offset) + 0.6 * self.fine_field[box][spot] < radius)
                mean = rng.choice((rng.uniform(-5, 25), self.look.hu[t.LIVER] - rng.uniform(15, 60)))
                self.image[box][spot][ball] = mean + rng.uniform(2, 15) * self.fine_field[box][spot][ball]

    def gallbladder(self) -> None:
        part = self.part(t.GALLBLADDER)
        if part is None:
            return
        box, mask = part
        if self.rng.random() < 0.2:  # stones or sludge lie at the back
            layer = np.arange(mask.shape[1])[None, :, None] < _level(mask, self.rng.uniform(0.7, 0.95))
            self.image[box][mask & layer] = self.rng.uniform(30, 250)

    def fat_planes(self) -> None:
        """Where two organs touch, a plane of fat thinner than a voxel lowers some of the border voxels."""
        soft = np.zeros(t.FINE_CODES, bool)
        soft[[*range(1, 15), t.ESOPHAGUS, t.MUSCLE]] = True
        amount = self.rng.uniform(0, 60) * np.clip(0.5 + 0.6 * self.coarse_field, 0, 1)
        border = np.zeros(self.fine.shape, bool)
        for axis in range(3):
            near = [slice(None)] * 3
            far = [slice(None)] * 3
            near[axis], far[axis] = slice(None, -1), slice(1, None)
            a, b = self.fine[tuple(near)], self.fine[tuple(far)]
            touch = (a != b) & soft[a] & soft[b]
            border[tuple(near)] |= touch
        border &= (self.image > -20) & (self.image < 300)
        self.image[border] -= amount[border]


def _scan(image: np.ndarray, look: Look, rng: np.random.Generator) -> np.ndarray:
    """Partial volume, thick slices, kernel, inhomogeneity and noise."""
    image = ndimage.gaussian_filter(image, rng.uniform(0.4, 0.75), truncate=3)
    if look.slice_mm > SPACING:
        image = ndimage.gaussian_filter1d(image, 0.35 * look.slice_mm / SPACING, axis=2)
    if look.sharp:
        image += look.sharp * (image - ndimage.gaussian_filter(image, 1.0, truncate=2.5))
    image += rng.uniform(0, 6) * smooth_noise(image.shape, rng.uniform(15, 40), rng)
    noise = smooth_noise(image.shape, rng.uniform(0.25, 0.75), rng)
    image += look.noise_hu / noise.std() * noise
    return image


def synthesize_image(
    fine: np.ndarray, rng: np.random.Generator, *, phase: str | None = None, look: Look | None = None
) -> np.ndarray:
    """A CT drawn from a fine map.

    Args:
        fine: uint8 (I, J, K), RAS+, 3 mm; codes of training/tissues.py.
        rng: the only source of chance: the same state gives the same image.
        phase: one of tissues.PHASES, or None to draw one; ignored when `look` is given.
        look: intensities to use instead of drawing them.

    Returns:
        int16 HU (I, J, K), within -1024..3071.
    """
    look = look or draw_look(rng, phase=phase)
    painter = _Painter(fine, look, rng)
    painter.texture()
    painter.fat_strands()
    painter.liver()
    painter.spleen()
    painter.kidneys()
    painter.stomach()
    for code in (t.COLON, t.SMALL_BOWEL, t.DUODENUM):
        painter.bowel(code)
    painter.bladder()
    painter.heart()
    painter.lungs()
    painter.gallbladder()
    painter.lesions()
    painter.bones()
    painter.fat_planes()
    image = _scan(painter.image, look, rng)
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)
