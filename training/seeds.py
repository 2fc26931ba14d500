"""Organs grown from points set by eye: labels for volumes that have none.

`training/seeds.json` holds, per case and structure, balls [k, i, j, radius] (voxels of the 3 mm lattice) that lie
inside the structure; "other" are balls in tissue of no structure. A marker watershed on the gradient grows them, and
only what has the density of the balls is kept. The inside becomes certain, the rim stays open, and outside a margin
the structure is excluded: 9 mm where it was found whole, 27 mm for what the case lists under "rough" (parts of it may
be missing); structures under "partial" (only some of it was marked) are excluded nowhere.
Points were set by the developers on slices of the images, not by a clinician.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage as ndi

from training.structures import VALUE, bit, certain, without

SEEDS = Path(__file__).with_name("seeds.json")
_OTHER = 60
# How far from the balls' surface a structure may reach (voxels), and how far its density
# may lie below and above that of the balls (HU).
_REACH = {"liver": 14, "spleen": 9, "kidney_left": 6, "kidney_right": 6, "aorta": 3, "inferior_vena_cava": 4,
          "heart": 9, "gallbladder": 4, "stomach": 7, "urinary_bladder": 8, "esophagus": 2, "pancreas": 4}
# Heart chambers fill with contrast one after the other, so next to no density is foreign to the heart.
_RANGE = {"liver": (45, 45), "spleen": (40, 40), "kidney_left": (120, 250), "kidney_right": (120, 250),
          "aorta": (60, 60), "heart": (150, 500), "stomach": (60, 60), "gallbladder": (30, 30)}
_THIN = ("aorta", "inferior_vena_cava", "esophagus")
_LARGE = ("liver", "spleen", "heart", "stomach", "urinary_bladder")
_GRID = np.indices((5, 5, 5)) - 2
_OPENING = {False: ndi.generate_binary_structure(3, 1), True: (_GRID ** 2).sum(0) <= 5}


def marked(name: str) -> dict | None:
    """What was marked in this case: {"shape", "seeds": {structure: [[k, i, j, r], ...]}, "partial": [structure, ...],
    "rough": [structure, ...], "reach": {structure: voxels}}; None where nothing was."""
    return json.loads(SEEDS.read_text(encoding="utf-8")).get(name)


def _balls(shape: tuple[int, ...], balls: list[list[float]]) -> np.ndarray:
    """Mask of all balls; each covers at least its central voxel."""
    mask = np.zeros(shape, bool)
    for k, i, j, radius in balls:
        centre = np.array([i, j, k])
        low = np.maximum(0, np.floor(centre - radius)).astype(int)
        high = np.minimum(shape, np.ceil(centre + radius).astype(int) + 1)
        grid = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high)), indexing="ij"), -1)
        box = tuple(slice(a, b) for a, b in zip(low, high))
        mask[box] |= ((grid - centre) ** 2).sum(-1) <= radius ** 2 + 0.3
    return mask


def grow(hu: np.ndarray, possible: np.ndarray, seeds: dict[str, list],
         reach: dict[str, float] | None = None) -> dict[str, np.ndarray]:
    """Masks (I, J, K) of the structures grown from their balls.

    Voxels whose possible bits exclude a structure are never given to it; certain voxels hold the others back."""
    smooth = ndi.gaussian_filter(hu.astype(np.float32), 0.7)
    gradient = ndi.gaussian_gradient_magnitude(np.clip(hu, -150, 350).astype(np.float32), 0.8)
    markers = np.zeros(hu.shape, np.uint8)
    markers[certain(possible)] = _OTHER
    spots = {}
    for name, balls in seeds.items():
        spots[name] = _balls(hu.shape, balls)
        if name != "other":
            spots[name] &= (possible & bit(name)) != 0
    for name, spot in spots.items():
        markers[spot] = _OTHER if name == "other" else VALUE[name]
    basins = sitk.GetArrayFromImage(sitk.MorphologicalWatershedFromMarkers(
        sitk.GetImageFromArray(gradient), sitk.GetImageFromArray(markers), markWatershedLine=False))
    masks = {}
    limits = _REACH | (reach or {})
    for name, spot in spots.items():
        if name == "other" or not spot.any():
            continue
        # The marrow of a kidney is darker than its cortex, and a ball covers both.
        level = np.percentile(smooth[spot], 80 if name.startswith("kidney") else 50)
        below, above = _RANGE.get(name, (50, 50))
        region = (basins == VALUE[name]) & (smooth > level - below) & (smooth < level + above)
        region &= (possible & bit(name)) != 0
        region &= ndi.distance_transform_edt(~spot) <= limits.get(name, 5)
        if name in _THIN:
            opened = region
        else:
            padded = np.pad(region, 3, mode="edge")
            opened = ndi.binary_opening(padded, _OPENING[name in _LARGE])[3:-3, 3:-3, 3:-3]
        labels, count = ndi.label(opened)
        touched = [number for number in np.unique(labels[spot & opened]) if number]
        if not touched:
            continue
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        if name in _LARGE:
            touched = [max(touched, key=lambda number: sizes[number])]
        region = np.isin(labels, touched)
        region = ndi.binary_closing(np.pad(region, 2), iterations=1)[2:-2, 2:-2, 2:-2] & ((possible & bit(name)) != 0)
        masks[name] = ndi.binary_fill_holes(region)
    return masks


def apply(possible: np.ndarray, masks: dict[str, np.ndarray], partial: list[str] = (),
          rough: list[str] = ()) -> np.ndarray:
    """Bit masks with the grown structures: inside certain, rim open, excluded outside the margin."""
    result = possible.copy()
    edge = ndi.generate_binary_structure(3, 1)
    for name, mask in masks.items():
        # At the first and last slice the structure goes on: only the sides are rim.
        padded = np.pad(mask, ((0, 0), (0, 0), (1, 1)), mode="edge")
        core = ndi.binary_erosion(padded, edge)[:, :, 1:-1]
        allowed = (result & bit(name)) != 0
        result[core & allowed] = bit(name)
        if name not in partial:
            outside = ndi.distance_transform_edt(~mask) > (9 if name in rough else 3)
            cut = result & without(name)
            result = np.where(outside & (cut != 0), cut, result)
    return result.astype(np.uint32)


def add_marked(name: str, hu: np.ndarray, possible: np.ndarray) -> np.ndarray:
    """The bit masks of a case with its marked structures grown in; unchanged where nothing was marked."""
    record = marked(name)
    if record is None:
        return possible
    if tuple(record["shape"]) != hu.shape:
        raise ValueError(f"The points of {name} were set on a volume of {record['shape']} voxels, this one has "
                         f"{list(hu.shape)}; prepare it from the same image.")
    masks = grow(hu, possible, record["seeds"], record["reach"])
    return apply(possible, masks, record["partial"], record["rough"])
