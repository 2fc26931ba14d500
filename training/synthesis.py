"""Synthetic training cases: invented anatomy around expert organ maps, drawn as CT with random intensities.

    python -m training.synthesis DATA_FOLDER CACHE_FOLDER --per-map 3 --real 12 --seed 0

writes `synthetic-MM-SEED-N.npz` (from `labels-multiorgan-MM`) and `redrawn-SEED-N.npz` (the fully labelled abdomen
deformed and drawn anew) in the format of `training.cases`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from training import tissues as t
from training.anatomy import complete_anatomy
from training.cases import Case
from training.lattice import SPACING, load, resample_codes
from training.rendering import smooth_noise, synthesize_image
from training.template import Template, load_template
from training.tissues import possible_classes
from training.variety import surround, vary

__all__ = ["complete_anatomy", "deform", "expert_organs", "main", "random_view", "synthesize_image"]

# Values in the expert maps -> class values.
EXPERT_VALUES = {1: t.SPLEEN, 2: t.PANCREAS, 3: t.KIDNEY_LEFT, 4: t.GALLBLADDER, 5: t.ESOPHAGUS, 6: t.LIVER,
                 7: t.STOMACH, 8: t.DUODENUM}  # fmt: skip


def expert_organs(path: Path) -> np.ndarray:
    """An expert map at 3 mm: uint8 (I, J, K), RAS+, class values; each voxel takes the organ with most of it."""
    volume = load(path)
    labels = volume.array.astype(np.uint8)
    # Around the organs nothing is known: cut there before the costly part. Positions of the maps mean nothing.
    box = ndimage.find_objects((labels > 0).astype(np.uint8))[0]
    labels = labels[tuple(slice(max(0, s.start - 8), s.stop + 8) for s in box)]
    codes = np.zeros(256, np.uint8)
    for value, code in EXPERT_VALUES.items():
        codes[value] = code
    return resample_codes(replace(volume, array=labels), codes[labels])


def deform(fine: np.ndarray, rng: np.random.Generator, *, amount: float, scale: tuple[float, float]) -> np.ndarray:
    """Random smooth deformation, turn and scaling of a fine map (nearest code).

    Args:
        fine: uint8 (I, J, K).
        amount: standard deviation of the displacement in voxels.
        scale: range of the size factor per axis.

    Returns:
        uint8 fine map on a lattice that holds the scaled body.
    """
    factor = rng.uniform(*scale) * rng.uniform(0.93, 1.07, 3)
    factor = np.clip(factor, *scale)
    shape = tuple(round(float(n * f)) for n, f in zip(fine.shape, factor, strict=True))
    turn = np.deg2rad(rng.normal(0, 4))
    cos, sin = np.cos(turn), np.sin(turn)
    grid = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) for n in shape]
    x, y, z = (g.reshape([-1 if a == axis else 1 for a in range(3)]) for axis, g in enumerate(grid))
    source = [cos * x + sin * y + 0 * z, -sin * x + cos * y + 0 * z, 0 * x + 0 * y + z]
    index, inside = [], np.ones(shape, bool)
    for axis in range(3):
        shift = amount * (
            0.85 * smooth_noise(shape, rng.uniform(14, 26), rng) + 0.25 * smooth_noise(shape, rng.uniform(6, 10), rng)
        )
        where = np.rint(source[axis] / factor[axis] + (fine.shape[axis] - 1) / 2 + shift).astype(np.int32)
        if axis < 2:  # sideways there is air, above and below the body goes on
            inside &= (where >= 0) & (where < fine.shape[axis])
        index.append(np.clip(where, 0, fine.shape[axis] - 1))
    return np.where(inside, fine[tuple(index)], t.OUTSIDE).astype(np.uint8)


def random_view(fine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cuts a random field of view: some slices off either end, air around the body down to a random margin."""
    size = fine.shape[2]
    low = int(rng.uniform(0, 0.45) * size) if rng.random() < 0.6 else 0
    high = size - (int(rng.uniform(0, 0.3) * size) if rng.random() < 0.6 else 0)
    fine = surround(fine[:, :, low : max(high, low + min(size, 40))], rng)
    body = ~np.isin(fine, (t.OUTSIDE, t.TABLE))
    box = []
    for axis in range(2):
        hit = np.nonzero(body.any(tuple(a for a in range(3) if a != axis)))[0]
        margin = rng.integers(2, 14, 2)
        box.append(slice(max(0, hit[0] - margin[0]), hit[-1] + 1 + margin[1]))
    return np.ascontiguousarray(fine[tuple(box)])


def make_case(name: str, fine: np.ndarray, rng: np.random.Generator, *, weight: float = 1.0) -> Case:
    """Draws the image of a fine map and packs both as a prepared training case."""
    image = synthesize_image(fine, rng)
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    return Case(name=name, image=image, possible=possible_classes(fine), affine=affine, weight=weight)


def invent(organs: np.ndarray, template: Template, rng: np.random.Generator) -> np.ndarray:
    """One complete, deformed, randomly cut fine map around expert organs."""
    if rng.random() < 0.5:
        organs = deform(organs, rng, amount=rng.uniform(0.5, 2.0), scale=(0.92, 1.08))
    if rng.random() < 0.7:
        template = deform_template(template, rng)
    fine = vary(complete_anatomy(organs, template, rng), rng)
    fine = deform(fine, rng, amount=rng.uniform(0.3, 1.5), scale=(0.87, 1.15))
    return random_view(fine, rng)


def deform_template(template: Template, rng: np.random.Generator) -> Template:
    """The labelled abdomen with its own bowel, muscles and vessels moved, before it is fitted to other organs."""
    both = template.fine + np.uint8(128) * template.cavity
    both = deform(both, rng, amount=rng.uniform(0.8, 2.2), scale=(0.95, 1.05))
    return Template(both & 127, both >= 128)


def redraw(template: Template, rng: np.random.Generator) -> np.ndarray:
    """The labelled abdomen, strongly deformed and randomly cut."""
    fine = vary(template.fine, rng) if rng.random() < 0.8 else template.fine
    return random_view(deform(fine, rng, amount=rng.uniform(1, 4), scale=(0.8, 1.25)), rng)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.synthesis", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="data folder with labels-multiorgan-* and ct-abdomen-01")
    parser.add_argument("cache", type=Path, help="folder for the prepared cases")
    parser.add_argument("--per-map", type=int, default=3, help="cases per expert map (default 3)")
    parser.add_argument("--real", type=int, default=12, help="cases from the labelled abdomen (default 12)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weight", type=float, default=1.0, help="how often to sample each case (default 1)")
    options = parser.parse_args(arguments)
    template = load_template(options.data)
    start = time.perf_counter()

    def write(case: Case) -> None:
        case.save(options.cache)
        print(f"{case.name}: {'x'.join(map(str, case.image.shape))}, {time.perf_counter() - start:.0f} s", flush=True)

    for n in range(options.real):
        rng = np.random.default_rng((options.seed, 1, n))
        write(make_case(f"redrawn-{options.seed}-{n}", redraw(template, rng), rng, weight=options.weight))
    for folder in sorted(options.data.glob("labels-multiorgan-*")):
        number = folder.name.rsplit("-", 1)[-1]
        organs = expert_organs(folder / "labels.nii.gz") if options.per_map else None
        for n in range(options.per_map):
            rng = np.random.default_rng((options.seed, 2, int(number), n))
            case = make_case(f"synthetic-{number}-{options.seed}-{n}", invent(organs, template, rng), rng,
                             weight=options.weight)
            write(case)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
