"""Is this a CT in Hounsfield units? From the file's own word where it has one, and from the voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .volume import Volume

_SAMPLES = 200_000
#: Values at or below this are what scanners fill the corners with, not measurements.
_PADDING = -1500
_WORDS = {"PT": "PET", "NM": "nuclear medicine", "US": "ultrasound", "XA": "angiography", "CR": "X-ray", "DX": "X-ray"}


@dataclass(frozen=True)
class ModalityGuess:
    """kind: "CT", "MR" or "unknown"; is_hu: whether the voxels are Hounsfield units; sentence: for a person."""

    kind: str
    is_hu: bool
    sentence: str


def guess_modality(volume: Volume) -> ModalityGuess:
    """Guess from meta["modality"] and a sample of voxels (about 10 ms). Never raises for a checked volume.

    In Hounsfield units air is near -1000, fat -150..-30, organs -20..150, whatever the scanner; the rules below were
    set on nineteen CT volumes (whole scans and crops), two MR volumes, and CT stored with an offset or normalised.
    """
    values = _sample(volume.array)
    told = str(volume.meta.get("modality") or "").upper()
    if told not in ("", "CT", "UNKNOWN"):
        if told == "MR":
            return ModalityGuess("MR", False, "The file says that this is an MR image.")
        return ModalityGuess("unknown", False, f"The file says that this is a {_WORDS.get(told, told)} image, not a "
                                               "CT.")
    source = "The file says that this is a CT" if told == "CT" else "The voxels look like a CT"
    if _shifted(values):
        return ModalityGuess("CT", False, f"{source}, but its values lie about 1000 above Hounsfield units; export it "
                                          "again with the rescale intercept applied.")
    if _in_hounsfield(values, told == "CT"):
        return ModalityGuess("CT", True, f"{source} in Hounsfield units.")
    low, high = (float(v) for v in (values.min(), values.max())) if values.size else (0.0, 0.0)
    spread = f"(values from {low:g} to {high:g})"
    if told == "CT":
        return ModalityGuess("CT", False, f"The file says that this is a CT, but its voxels are not Hounsfield units "
                                          f"{spread}; export it again without windowing or scaling.")
    if high - low > 50 and np.percentile(values, 1) >= -0.05 * np.percentile(values, 99) and not _eight_bit(values):
        return ModalityGuess("MR", False, "The voxels look like an MR image, not like a CT in Hounsfield units "
                                          f"{spread}.")
    return ModalityGuess("unknown", False, f"The voxels are not Hounsfield units {spread}; they may have been "
                                           "normalised or windowed.")


def _sample(array: np.ndarray) -> np.ndarray:
    step = max(1, int(np.ceil((array.size / _SAMPLES) ** (1 / 3))))
    if min(array.shape) < step:     # thin slabs and slices: every line, fewer voxels of each
        flat = array.ravel(order="K")[::max(1, array.size // _SAMPLES)]
    else:
        flat = array[::step, ::step, ::step].ravel(order="K")
    values = flat.astype(np.float32)
    return values[np.isfinite(values) & (values > _PADDING)]


def _part(values: np.ndarray, low: float, high: float) -> float:
    return float(np.count_nonzero((values >= low) & (values <= high))) / max(1, values.size)


def _in_hounsfield(values: np.ndarray, told: bool) -> bool:
    # Sharp kernels undershoot, and resampled padding blends into air: real scans hold up to 2 % of such voxels.
    if values.size == 0 or float(np.percentile(values, 5)) < -1300:
        return False
    if _part(values, -1200, -850) > 0.3:
        return True                                             # nothing else has that much of it: air
    organs = _part(values, -20, 150)
    below = _part(values, -1200, -50)                           # air, lung and fat: there is some in every body
    if told:        # a small crop may hold neither air nor fat, but noise around water goes below zero
        return float(np.ptp(values)) > 50 and _part(values, -1300, -1) > 0.0005
    return organs > 0.01 and below > 0.02 and float(np.percentile(values, 0.5)) < -60


def _shifted(values: np.ndarray) -> bool:
    """An offset of 1024 or 1000 was left in: soft tissue lies there, with the gap between lung and fat below it."""
    if values.size == 0 or values.min() < -100:
        return False
    body = _part(values, 851, 1e9)
    return body >= 0.05 and _part(values, 874, 1224) >= 0.7 * body and _part(values, 550, 850) <= 0.25 * body


def _eight_bit(values: np.ndarray) -> bool:
    return bool(values.size and values.min() >= 0 and values.max() in (255.0, 1.0))
